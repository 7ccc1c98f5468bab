"""The chart widget: panels of curves, drawn in a thread."""

from __future__ import annotations

import time

from textual import work
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from gladius_tui.app.model.drawing import Drawing
from gladius_tui.app.theme import chart_colours, former_run_colours
from gladius_tui.app.widgets.chart_mouse import ChartMouse
from gladius_tui.app.widgets.chart_sketch import Palette, Sketch, sketch
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines

LEAST_INTERVAL = 1.0
"""Least seconds between two drawings of a growing chart; a key redraws it at once."""
MOST_SHARE = 0.03
"""Largest share of the time that drawing may take."""


class Chart(PartialRefresh, ChartMouse):
    """Curves over steps.

    `show` sets what to draw. One drawing is made at a time, in a thread; the previous one stays
    until it is done.
    """

    can_focus = False
    DEFAULT_CSS = """
    Chart { width: 1fr; height: 1fr; min-height: 4; }
    """

    class Resized(Message):
        """The chart has another size."""

    class Drawn(Message):
        """`Chart.sketch` is new."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.drawing = Drawing()
        self.sketch = Sketch()
        """The last drawing."""
        self.seconds = 0.0
        """Duration of the last drawing."""
        self.sketching = False
        """Whether a drawing is being made."""
        self._drawn_at = 0.0
        self._outdated = False

    @property
    def plot_columns(self) -> int:
        """Columns that curves should have at this width: two in each cell."""
        return max(20, 2 * (self.size.width - 20))

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        wait = max(LEAST_INTERVAL, self.seconds / MOST_SHARE)
        return not self.sketching and time.monotonic() - self._drawn_at >= wait

    def show(self, drawing: Drawing) -> None:
        """Draw this from now on."""
        self.drawing = drawing
        self._request()

    def step_at(self, x: int) -> int | None:
        """The step at a column of the widget; None outside the plot."""
        first, columns = self.sketch.plot
        if not first <= x < first + columns:
            return None
        lo, hi = self.drawing.lo, self.drawing.hi - 1
        return min(hi, lo + round((x - first) / max(1, columns - 1) * (hi - lo)))

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self._request())

    def on_resize(self) -> None:
        self._request()
        self.post_message(self.Resized())

    def render_line(self, y: int) -> Strip:
        """A line of the last drawing."""
        lines = self.sketch.lines
        line = lines[y] if y < len(lines) else Strip.blank(self.size.width)
        return line.apply_style(self.rich_style).adjust_cell_length(
            self.size.width, self.rich_style
        )

    def _request(self) -> None:
        self._outdated = True
        if not self.sketching and self.is_mounted and self.size:
            self._outdated, self.sketching = False, True
            palette = Palette(
                metrics=[Color.parse(colour).rgb for colour in chart_colours(self.app)],
                former=[Color.parse(colour).rgb for colour in former_run_colours(self.app)],
                text=self.colors[3].rgb,
                background=self.background_colors[1].rgb,
            )
            self._sketch(self.drawing.snapshot(), self.size, palette)

    @work(thread=True, group="chart", exit_on_error=False)
    def _sketch(self, drawing: Drawing, size: Size, palette: Palette) -> None:
        started = time.perf_counter()
        drawn = Sketch()
        try:
            drawn = sketch(drawing, size, palette)
        finally:
            self.app.call_later(self._sketched, drawn, time.perf_counter() - started)

    def _sketched(self, drawn: Sketch, seconds: float) -> None:
        changed = changed_lines(self.sketch.lines, drawn.lines, self.size.width)
        self.sketch, self.seconds, self._drawn_at = drawn, seconds, time.monotonic()
        self.sketching = False
        if changed != []:
            self.refresh(*(changed or ()))
        self.post_message(self.Drawn())
        if self._outdated:
            self._request()
