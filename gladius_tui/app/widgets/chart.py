"""The chart widget: curves on axes, drawn by plotext in a thread.

plotext takes milliseconds for a hundred points, so a chart gets at most two points a column, and
is drawn less often if drawing takes long.
"""

from __future__ import annotations

import time

from rich.text import Text
from textual import work
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual_plotext import PlotextPlot

from gladius_tui.app.model.drawing import Drawing
from gladius_tui.app.theme import chart_colours
from gladius_tui.app.widgets.chart_sketch import RGB, Sketch
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines

LEAST_INTERVAL = 1.0
"""Least seconds between two drawings of a growing chart; a key redraws it at once."""
MOST_SHARE = 0.03
"""Largest share of the time that drawing may take."""


class Chart(PartialRefresh, PlotextPlot):
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

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.theme = "textual-clear"
        self.drawing = Drawing()
        self.seconds = 0.0
        """Duration of the last drawing."""
        self._drawn_at = 0.0
        self._text = Text("")
        self._rows: list[tuple] = []
        self._outdated = False
        self._sketching = False

    @property
    def plot_columns(self) -> int:
        """Columns that curves should have at this width."""
        return max(20, self.size.width - 7)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last drawing."""
        wait = max(LEAST_INTERVAL, self.seconds / MOST_SHARE)
        return not self._sketching and time.monotonic() - self._drawn_at >= wait

    def show(self, drawing: Drawing) -> None:
        """Draw this from now on."""
        self.drawing = drawing
        self._request()

    def on_mount(self) -> None:
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda _: self._request())

    def on_resize(self) -> None:
        self._request()
        self.post_message(self.Resized())

    def render(self) -> Text:
        """The last drawing."""
        return self._text

    def _request(self) -> None:
        self._outdated = True
        if not self._sketching and self.is_mounted:
            self._outdated, self._sketching = False, True
            colours = [Color.parse(colour).rgb for colour in chart_colours(self.app)]
            background = self.background_colors[1].rgb
            self._sketch(self.drawing.snapshot(), self.size, colours, background)

    @work(thread=True, group="chart", exit_on_error=False)
    def _sketch(self, drawing: Drawing, size: Size, colours: list[RGB], background: RGB) -> None:
        started = time.perf_counter()
        text = Text("")
        try:
            text = Sketch(self.plt, drawing, size, colours, background).text()
        finally:
            self.app.call_later(self._sketched, text, time.perf_counter() - started)

    def _sketched(self, text: Text, seconds: float) -> None:
        rows = [(line.plain, tuple(line.spans)) for line in text.split("\n", allow_blank=True)]
        changed = changed_lines(self._rows, rows, self.size.width)
        self._text, self.seconds, self._drawn_at = text, seconds, time.monotonic()
        self._rows, self._sketching = rows, False
        if changed != []:
            self.refresh(*(changed or ()))
        if self._outdated:
            self._request()
