"""Draw curves on axes as text, with plotext. Works in any thread."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.geometry import Size
from textual_plotext import Plot

from gladius_tui.app.model.curves import (
    Segment,
    is_sparse,
    log_ticks,
    on_log,
    ticks,
    unit_of,
)
from gladius_tui.app.model.drawing import Drawing, Series
from gladius_tui.format import axis_number

RGB = tuple[int, int, int]

_RAW_OPACITY = 0.38
"""Opacity of the raw values behind their moving average."""
_FORMER_OPACITY = 0.6
"""Opacity of a former run."""


class Sketch:
    """One drawing of a chart.

    Args:
        plot: plotext's canvas.
        colours: the chart colours, by `Series.colour`.
        background: the colour behind the chart.
    """

    def __init__(
        self, plot: Plot, drawing: Drawing, size: Size, colours: Sequence[RGB], background: RGB
    ) -> None:
        self._plot, self._drawing, self._size = plot, drawing, size
        self._colours, self._background = colours, background

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
            return Text("\n" * (height // 2) + "no values yet".center(width))
        plot.xaxes(True, False)
        plot.yaxes(True, "right" in ranges)
        lo, hi = self._drawing.lo, max(self._drawing.hi - 1, self._drawing.lo + 1)
        plot.xlim(lo, hi)
        positions = ticks(lo, hi, max(2, width // 14))
        plot.xticks(positions, [axis_number(x) for x in positions])
        for side, (low, high) in ranges.items():
            self._set_y_axis(side, low, high, height)
        return Text.from_ansi(plot.build(), no_wrap=True, end="")

    def _plot_series(self) -> dict[str, tuple[float, float]]:
        """Plot all series; returns the range of values of each side that has any."""
        drawing = self._drawing
        if not drawing.series:
            return {}
        left_unit = unit_of(drawing.series[0].curve.metric)
        ranges: dict[str, tuple[float, float]] = {}
        smoothed: list[tuple[Series, list[Segment], RGB, str]] = []
        for series in drawing.series:
            side = "left" if unit_of(series.curve.metric) == left_unit else "right"
            colour = self._colours[series.colour % len(self._colours)]
            if series.run:
                colour = _blend(colour, self._background, _FORMER_OPACITY)
            raw = self._visible(series.curve.raw())
            shown = raw
            if drawing.smoothing is not None and not is_sparse(series.curve.metric):
                shown = self._visible(series.curve.smooth(drawing.smoothing))
                if not series.run:
                    faint = _blend(colour, self._background, _RAW_OPACITY)
                    self._plot_segments(raw, faint, side, dots=False)
            smoothed.append((series, shown, colour, side))
            values = [y for _, ys in (shown if series.run else raw) for y in ys]
            if values:
                low, high = ranges.get(side, (values[0], values[0]))
                ranges[side] = min(low, *values), max(high, *values)
        for series, shown, colour, side in smoothed:  # drawn over all raw values
            self._plot_segments(shown, colour, side, dots=is_sparse(series.curve.metric))
        return ranges

    def _visible(self, segments: Sequence[Segment]) -> list[Segment]:
        """The points on the x axis; curves begin before it, to warm up their moving averages."""
        lo, hi = self._drawing.lo, self._drawing.hi
        visible = []
        for xs, ys in on_log(segments) if self._drawing.log else segments:
            inside = [(x, y) for x, y in zip(xs, ys, strict=True) if lo <= x < hi]
            if inside:
                visible.append(([x for x, _ in inside], [y for _, y in inside]))
        return visible

    def _plot_segments(
        self, segments: Sequence[Segment], colour: RGB, side: str, *, dots: bool
    ) -> None:
        for xs, ys in segments:
            if len(xs) > 1:
                # Sparse metrics: measured values are dots, the line between them is dotted.
                marker = "·" if dots else "braille"
                self._plot.plot(xs, ys, marker=marker, color=colour, yside=side)
            if dots or len(xs) == 1:
                self._plot.scatter(xs, ys, marker="•", color=colour, yside=side)

    def _set_y_axis(self, side: str, low: float, high: float, height: int) -> None:
        if low == high:
            low, high = low - 0.5, high + 0.5
        margin = (high - low) * 0.03
        self._plot.ylim(low - margin, high + margin, side)  # type: ignore[arg-type]
        most = max(2, (height - 2) // 3)
        if self._drawing.log:
            values = log_ticks(low, high, most)
            positions = [y for _, ys in on_log([([0.0] * len(values), values)]) for y in ys]
        else:
            values = positions = ticks(low, high, most)
        labels = [axis_number(value) for value in values]
        self._plot.yticks(positions, labels, side)  # type: ignore[arg-type]


def _blend(colour: RGB, background: RGB, opacity: float) -> RGB:
    """The colour over the background."""
    a, b, c = (
        round(x * opacity + y * (1 - opacity)) for x, y in zip(colour, background, strict=True)
    )
    return a, b, c
