"""Owns the chart widget: curves on axes, drawn by plotext. What the points are is `curves`'.

plotext takes milliseconds for a hundred points, so a chart gets at most two a column, is drawn in a
thread, and less often where that is dear.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.text import Text
from textual import work
from textual.color import Color
from textual.geometry import Size
from textual.message import Message
from textual_plotext import Plot, PlotextPlot

from gladius_tui.app.model.curves import (
    Curve,
    Segment,
    is_sparse,
    log_ticks,
    on_log,
    ticks,
    title_of,
    unit_of,
)
from gladius_tui.app.theme import chart_colours
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines
from gladius_tui.format import axis_number

LEAST_INTERVAL = 1.0
"""Seconds between two drawings of a chart that grows, at least; a key redraws it at once."""
MOST_SHARE = 0.03
"""Of the time that drawing may take; a dear chart is drawn less often."""


RGB = tuple[int, int, int]


@dataclass
class Series:
    """A curve as it is drawn."""

    curve: Curve
    colour: int
    """Place among the theme's chart colours."""
    run: str = ""
    """Title of the former run that it belongs to; "" for the one that is shown."""


@dataclass
class Drawing:
    """All that a chart shows."""

    series: list[Series] = field(default_factory=list)
    lo: int = 0
    hi: int = 1
    log: bool = False
    smoothing: float | None = None

    def snapshot(self) -> Drawing:
        """A copy that does not grow."""
        series = [
            Series(Curve(s.curve.metric, list(s.curve.columns)), s.colour, s.run)
            for s in self.series
        ]
        return Drawing(series, self.lo, self.hi, self.log, self.smoothing)


class Chart(PartialRefresh, PlotextPlot):
    """Curves over steps. `show` gives it what to draw; it is drawn in a thread, one at a time, and
    what was drawn before stays until that is done."""

    can_focus = False
    DEFAULT_CSS = """
    Chart { width: 1fr; height: 1fr; min-height: 4; }
    """

    class Resized(Message):
        """It has another width or height."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.theme = "textual-clear"
        self.drawing = Drawing()
        self.seconds = 0.0
        """That the last drawing took."""
        self._drawn_at = 0.0
        self._text = Text("")
        self._rows: list[tuple] = []
        self._wanted = False
        self._sketching = False

    @property
    def plot_columns(self) -> int:
        """Columns that curves should have at this width."""
        return max(20, self.size.width - 7)

    @property
    def due(self) -> bool:
        """Whether enough time has gone by since the last drawing."""
        wait = max(LEAST_INTERVAL, self.seconds / MOST_SHARE)
        return not self._sketching and time.monotonic() - self._drawn_at >= wait

    def show(self, drawing: Drawing) -> None:
        """Draw this from now on."""
        self.drawing = drawing
        self._want()

    def on_mount(self) -> None:
        super().on_mount()
        self.app.theme_changed_signal.subscribe(self, lambda _: self._want())

    def on_resize(self) -> None:
        self._want()
        self.post_message(self.Resized())

    def render(self) -> Text:
        """What was drawn last."""
        return self._text

    def _want(self) -> None:
        self._wanted = True
        if not self._sketching and self.is_mounted:
            self._wanted, self._sketching = False, True
            colours = [Color.parse(colour).rgb for colour in chart_colours(self.app)]
            behind = self.background_colors[1].rgb
            self._sketch(self.drawing.snapshot(), self.size, colours, behind)

    @work(thread=True, group="chart", exit_on_error=False)
    def _sketch(self, drawing: Drawing, size: Size, colours: list[RGB], behind: RGB) -> None:
        began = time.perf_counter()
        text = Text("")
        try:
            text = Sketch(self.plt, drawing, size, colours, behind).text()
        finally:
            self.app.call_later(self._drawn, text, time.perf_counter() - began)

    def _drawn(self, text: Text, seconds: float) -> None:
        rows = [(line.plain, tuple(line.spans)) for line in text.split("\n", allow_blank=True)]
        changed = changed_lines(self._rows, rows, self.size.width)
        self._text, self.seconds, self._drawn_at = text, seconds, time.monotonic()
        self._rows, self._sketching = rows, False
        if changed != []:
            self.refresh(*(changed or ()))
        if self._wanted:
            self._want()


class Sketch:
    """One drawing of a chart, for any thread."""

    def __init__(
        self, plot: Plot, drawing: Drawing, size: Size, colours: Sequence[RGB], behind: RGB
    ) -> None:
        self._plot, self._drawing, self._size = plot, drawing, size
        self._colours, self._behind = colours, behind

    def text(self) -> Text:
        """The chart as text of this size."""
        width, height = self._size
        if width < 12 or height < 4:
            return Text("")
        plot = self._plot
        plot.clear_figure()
        plot.theme("textual-clear")
        plot.plotsize(width, height)
        plot._set_size(width, height)
        ranges = self._plot_series()
        if not ranges:
            return Text("\n" * (height // 2) + "no value yet".center(width))
        plot.xaxes(True, False)
        plot.yaxes(True, "right" in ranges)
        lo, hi = self._drawing.lo, max(self._drawing.hi - 1, self._drawing.lo + 1)
        plot.xlim(lo, hi)
        at = ticks(lo, hi, max(2, width // 14))
        plot.xticks(at, [axis_number(x) for x in at])
        for side, (low, high) in ranges.items():
            self._ticks(side, low, high, height)
        return Text.from_ansi(plot.build(), no_wrap=True, end="")

    def _plot_series(self) -> dict[str, tuple[float, float]]:
        """Plots all; returns the range of each side that has values."""
        drawing = self._drawing
        if not drawing.series:
            return {}
        first_unit = unit_of(drawing.series[0].curve.metric)
        ranges: dict[str, tuple[float, float]] = {}
        faint: list[tuple[list[Segment], RGB, str, bool]] = []
        strong: list[tuple[list[Segment], RGB, str, bool]] = []
        for series in drawing.series:
            metric, sparse = series.curve.metric, is_sparse(series.curve.metric)
            side = "left" if unit_of(metric) == first_unit else "right"
            colour = self._colours[series.colour % len(self._colours)]
            if series.run:
                colour = _blend(colour, self._behind, 0.6)
            raw = self._in_sight(self._scaled(series.curve.raw()))
            shown = raw
            if drawing.smoothing is not None and not sparse:
                shown = self._in_sight(self._scaled(series.curve.smooth(drawing.smoothing)))
                if not series.run:
                    faint.append((raw, _blend(colour, self._behind, 0.38), side, False))
            strong.append((shown, colour, side, sparse))
            every = [y for _, ys in (shown if series.run else raw) for y in ys]
            if every:
                low, high = ranges.get(side, (every[0], every[0]))
                ranges[side] = min(low, *every), max(high, *every)
        for lines in (*faint, *strong):
            self._lines(*lines)
        return ranges

    def _scaled(self, lines: Sequence[Segment]) -> list[Segment]:
        return on_log(lines) if self._drawing.log else list(lines)

    def _in_sight(self, lines: Sequence[Segment]) -> list[Segment]:
        """What lies on the axis: curves begin before it, for their moving averages."""
        lo, hi = self._drawing.lo, self._drawing.hi
        found = []
        for xs, ys in lines:
            inside = [(x, y) for x, y in zip(xs, ys, strict=True) if lo <= x < hi]
            if inside:
                found.append(([x for x, _ in inside], [y for _, y in inside]))
        return found

    def _lines(self, lines: Sequence[Segment], colour: RGB, side: str, dots: bool) -> None:
        for xs, ys in lines:
            if len(xs) > 1:
                # Few values: what was measured is a point, what lies between is dotted.
                marker = "·" if dots else "braille"
                self._plot.plot(xs, ys, marker=marker, color=colour, yside=side)
            if dots or len(xs) == 1:
                self._plot.scatter(xs, ys, marker="•", color=colour, yside=side)

    def _ticks(self, side: str, low: float, high: float, height: int) -> None:
        if low == high:
            low, high = low - 0.5, high + 0.5
        room = (high - low) * 0.03
        self._plot.ylim(low - room, high + room, side)  # type: ignore[arg-type]
        most = max(2, (height - 2) // 3)
        if self._drawing.log:
            values = log_ticks(low, high, most)
            at = [y for _, ys in on_log([([0.0] * len(values), values)]) for y in ys]
        else:
            values = at = ticks(low, high, most)
        self._plot.yticks(at, [axis_number(v) for v in values], side)  # type: ignore[arg-type]


def _blend(colour: RGB, behind: RGB, share: float) -> RGB:
    """`share` of the colour over what is behind."""
    a, b, c = (round(x * share + y * (1 - share)) for x, y in zip(colour, behind, strict=True))
    return a, b, c


def legend(drawing: Drawing, colours: Sequence[str]) -> list[tuple[str, str]]:
    """The curves' names with their newest values, each in its colour."""
    parts: list[tuple[str, str]] = []
    for series in drawing.series:
        colour = colours[series.colour % len(colours)]
        name = title_of(series.curve.metric)
        if series.run:
            parts.append((f"┄ {series.run} ", f"{colour} 70%"))
            continue
        last = next((c.last for c in reversed(series.curve.columns) if c.last is not None), None)
        value = "-" if last is None else axis_number(last) if abs(last) < 1e-2 else f"{last:.2f}"
        sign = "•" if is_sparse(series.curve.metric) else "─"
        parts.append((f"{sign} {name} {value}  ", colour))
    return parts
