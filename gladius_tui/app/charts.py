"""Owns the chart widget: curves on axes, drawn by plotext. What the points are is `curves`'.

plotext draws on the UI thread, so a chart never gets more than two points a column, and it is drawn
less often where drawing is dear.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.text import Text
from textual.color import Color
from textual_plotext import PlotextPlot

from gladius_tui.app.curves import (
    Curve,
    Segment,
    is_sparse,
    log_ticks,
    on_log,
    short,
    ticks,
    title_of,
    unit_of,
)
from gladius_tui.app.theme import chart_colours

LEAST_INTERVAL = 0.25
"""Seconds between two drawings, at least."""
MOST_SHARE = 0.03
"""Of the time that drawing may take; a dear chart is drawn less often."""


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


class Chart(PlotextPlot):
    """Curves over steps. `show` gives it what to draw; it is drawn when the screen is."""

    can_focus = False
    DEFAULT_CSS = """
    Chart { width: 1fr; height: 1fr; min-height: 4; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.theme = "textual-clear"
        self.drawing = Drawing()
        self.seconds = 0.0
        """That the last drawing took."""
        self._drawn_at = 0.0
        self._made: tuple[object, Text] | None = None
        self._version = 0

    @property
    def plot_columns(self) -> int:
        """Columns that curves should have at this width."""
        return max(20, self.size.width - 7)

    @property
    def due(self) -> bool:
        """Whether enough time has gone by since the last drawing."""
        wait = max(LEAST_INTERVAL, self.seconds / MOST_SHARE)
        return time.monotonic() - self._drawn_at >= wait

    def show(self, drawing: Drawing) -> None:
        """Draw this from now on."""
        self.drawing = drawing
        self._version += 1
        self.refresh()

    def render(self) -> Text:
        """The chart as text; made anew only when what it shows, its size or the theme changed."""
        key = (self._version, self.size, self.app.theme)
        if self._made is None or self._made[0] != key:
            began = time.perf_counter()
            self._made = key, self._make()
            self.seconds = time.perf_counter() - began
            self._drawn_at = time.monotonic()
        return self._made[1]

    def _make(self) -> Text:
        width, height = self.size
        if width < 12 or height < 4:
            return Text("")
        plot = self.plt
        plot.clear_figure()
        plot.theme("textual-clear")
        plot.plotsize(width, height)
        plot._set_size(width, height)
        ranges = self._plot_series(height)
        if not ranges:
            return Text("\n" * (height // 2) + "no value yet".center(width))
        plot.xaxes(True, False)
        plot.yaxes(True, "right" in ranges)
        lo, hi = self.drawing.lo, max(self.drawing.hi - 1, self.drawing.lo + 1)
        plot.xlim(lo, hi)
        at = ticks(lo, hi, max(2, width // 14))
        plot.xticks(at, [short(x) for x in at])
        for side, (low, high) in ranges.items():
            self._ticks(side, low, high, height)
        return Text.from_ansi(plot.build(), no_wrap=True, end="")

    def _plot_series(self, height: int) -> dict[str, tuple[float, float]]:
        """Plots all; returns the range of each side that has values."""
        drawing = self.drawing
        if not drawing.series:
            return {}
        first_unit = unit_of(drawing.series[0].curve.metric)
        ranges: dict[str, tuple[float, float]] = {}
        faint: list[tuple[Series, list[Segment], str]] = []
        strong: list[tuple[Series, list[Segment], str]] = []
        for series in drawing.series:
            side = "left" if unit_of(series.curve.metric) == first_unit else "right"
            raw = series.curve.raw()
            smooths = drawing.smoothing is not None and not is_sparse(series.curve.metric)
            if smooths and drawing.smoothing is not None:
                smooth = series.curve.smooth(drawing.smoothing)
                strong.append((series, self._scaled(smooth), side))
                if not series.run:
                    faint.append((series, self._scaled(raw), side))
            else:
                strong.append((series, self._scaled(raw), side))
            every = [y for _, ys in self._scaled(raw) for y in ys]
            if every:
                low, high = ranges.get(side, (every[0], every[0]))
                ranges[side] = min(low, *every), max(high, *every)
        colours = [Color.parse(c).rgb for c in chart_colours(self.app)]
        behind = self.background_colors[1].rgb
        for series, lines, side in faint:
            colour = _blend(colours[series.colour % len(colours)], behind, 0.38)
            self._lines(lines, colour, side, "braille")
        for series, lines, side in strong:
            colour = colours[series.colour % len(colours)]
            if series.run:
                colour = _blend(colour, behind, 0.6)
            self._lines(lines, colour, side, "braille", is_sparse(series.curve.metric))
        return ranges

    def _scaled(self, lines: Sequence[Segment]) -> list[Segment]:
        return on_log(lines) if self.drawing.log else list(lines)

    def _lines(
        self,
        lines: Sequence[Segment],
        colour: tuple[int, int, int],
        side: str,
        marker: str,
        dots: bool = False,
    ) -> None:
        for xs, ys in lines:
            if len(xs) > 1:
                # Few values: what was measured is a point, what lies between is dotted.
                dotted = "·" if dots else marker
                self.plt.plot(xs, ys, marker=dotted, color=colour, yside=side)
            if dots or len(xs) == 1:
                self.plt.scatter(xs, ys, marker="•", color=colour, yside=side)

    def _ticks(self, side: str, low: float, high: float, height: int) -> None:
        if low == high:
            low, high = low - 0.5, high + 0.5
        room = (high - low) * 0.03
        self.plt.ylim(low - room, high + room, side)  # type: ignore[arg-type]
        most = max(2, (height - 2) // 3)
        if self.drawing.log:
            values = log_ticks(low, high, most)
            at = [y for _, ys in on_log([([0.0] * len(values), values)]) for y in ys]
        else:
            values = at = ticks(low, high, most)
        self.plt.yticks(at, [short(v) for v in values], side)  # type: ignore[arg-type]


def _blend(
    colour: tuple[int, int, int], behind: tuple[int, int, int], share: float
) -> tuple[int, int, int]:
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
        value = "-" if last is None else short(last) if abs(last) < 1e-2 else f"{last:.2f}"
        sign = "•" if is_sparse(series.curve.metric) else "─"
        parts.append((f"{sign} {name} {value}  ", colour))
    return parts
