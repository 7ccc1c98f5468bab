"""Draw panels of curves on one axis of steps, as lines of styled text. Works in any thread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip

from gladius_tui.app.model.axes import (
    log_ticks,
    step_label,
    step_ticks,
    tick_labels,
    ticks,
    value_range,
)
from gladius_tui.app.model.drawing import Drawing, Panel, Series, panel_rows
from gladius_tui.app.model.metrics import is_sparse
from gladius_tui.app.widgets.braille import Canvas, Point

RGB = tuple[int, int, int]

_RAW_OPACITY, _FORMER_OPACITY = 0.38, 0.85
_AXIS_OPACITY, _TITLE_OPACITY = 0.45, 0.8
_LEAST_SIZE = Size(24, 4)
_LEAST_LABEL, _MOST_LABEL = 16, 22
"""Columns of the labels at the right end of the curves."""
_POINT_SPACING = 3
"""Cells between two measured values from which on each gets its sign."""


@dataclass(frozen=True)
class Palette:
    """Colours of a chart: of the metrics, of former runs, of text, and behind the chart."""

    metrics: Sequence[RGB]
    former: Sequence[RGB]
    text: RGB
    background: RGB

    def style(self, colour: RGB, opacity: float = 1.0, *, bold: bool = False) -> Style:
        """A text style; the colour is blended with the background."""
        red, green, blue = (
            round(x * opacity + y * (1 - opacity))
            for x, y in zip(colour, self.background, strict=True)
        )
        return Style(color=f"rgb({red},{green},{blue})", bold=bold or None)


@dataclass
class Sketch:
    """A drawn chart.

    Attributes:
        lines: its lines, all of the same length.
        plot: first column and number of columns of the plot; (0, 0) if there is none.
        shown: keys of the panels that have room.
        missing: titles of the panels that have none.
    """

    lines: list[Strip] = field(default_factory=list)
    plot: tuple[int, int] = (0, 0)
    shown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The chart without colours."""
        return "\n".join(line.text for line in self.lines)


def sketch(drawing: Drawing, size: Size, palette: Palette) -> Sketch:
    """Draw a chart of this size."""
    if size.width < _LEAST_SIZE.width or size.height < _LEAST_SIZE.height:
        return Sketch([Strip.blank(size.width)] * size.height)
    return _Sketcher(drawing, size, palette).sketch()


@dataclass
class _Line:
    """A series with its points in the range of steps."""

    series: Series
    style: Style
    raw: list[tuple[list[float], list[float]]]
    shown: list[tuple[list[float], list[float]]]
    """Smoothed, if the chart is."""

    @property
    def values(self) -> list[float]:
        """All values that the axis must reach."""
        segments = self.shown if self.series.run else self.raw
        return [y for _, ys in segments for y in ys]


class _Sketcher:
    """One drawing. Row 0 has no title: the pane's border shows the first panel's."""

    def __init__(self, drawing: Drawing, size: Size, palette: Palette) -> None:
        self._drawing, self._size, self._palette = drawing, size, palette
        self._axis = palette.style(palette.text, _AXIS_OPACITY)
        self._title = palette.style(palette.text, _TITLE_OPACITY, bold=True)
        self._cursor_style = palette.style(palette.text, 0.7)
        self._left = 0
        """Columns of the tick labels."""
        self._right = 0
        """Columns of the labels of the curves."""

    def sketch(self) -> Sketch:
        drawn = [(panel, self._panel_lines(panel)) for panel in self._drawing.panels]
        drawn = [(panel, lines) for panel, lines in drawn if any(line.values for line in lines)]
        width, height = self._size
        if not drawn:
            text = "no values yet".center(width)[:width]
            rows = [Strip.blank(width)] * height
            rows[height // 2] = Strip([Segment(text, self._axis)])
            return Sketch(rows)
        heights = panel_rows(len(drawn), height - 1)
        shown, missing = drawn[: len(heights)], drawn[len(heights) :]
        axes = [
            _ValueAxis(lines, self._drawing, rows - (n > 0))
            for n, ((_, lines), rows) in enumerate(zip(shown, heights, strict=True))
        ]
        self._left = max(len(label) for axis in axes for label in axis.labels.values())
        labels = [
            cell_len(line.series.label(self._drawing.cursor))
            for _, lines in shown
            for line in lines
        ]
        most = min(_MOST_LABEL, max(_LEAST_LABEL, width // 4))
        self._right = min(most, max(labels)) + 1
        rows: list[Strip] = []
        for n, ((panel, lines), axis) in enumerate(zip(shown, axes, strict=True)):
            if n:
                rows.append(self._title_row(panel))
            rows += self._plot_rows(lines, axis)
        rows.append(self._step_row())
        return Sketch(
            rows,
            (self._left + 1, self._columns),
            tuple(panel.key for panel, _ in shown),
            tuple(panel.title for panel, _ in missing),
        )

    @property
    def _columns(self) -> int:
        """Columns of the plot."""
        return max(4, self._size.width - self._left - 1 - self._right)

    def _panel_lines(self, panel: Panel) -> list[_Line]:
        """The panel's lines in the order of drawing: former runs below the current one."""
        drawing, lines = self._drawing, []
        for series in sorted(panel.series, key=lambda series: not series.run):
            curve = series.curve
            raw = drawing.visible(curve.raw(drawing.hi))
            shown = raw
            if drawing.smoothing is not None and not is_sparse(curve.metric):
                shown = drawing.visible(curve.smooth(drawing.smoothing, drawing.hi))
            colours = self._palette.former if series.run else self._palette.metrics
            colour = colours[series.colour % len(colours)]
            style = self._palette.style(colour, _FORMER_OPACITY if series.run else 1.0)
            lines.append(_Line(series, style, raw, shown))
        return lines

    def _plot_rows(self, lines: list[_Line], axis: _ValueAxis) -> list[Strip]:
        canvas = Canvas(self._columns, axis.rows)
        for line in lines:
            faint = line.shown is not line.raw and not line.series.run
            if faint:
                colours = self._palette.metrics
                colour = colours[line.series.colour % len(colours)]
                style = self._palette.style(colour, _RAW_OPACITY)
                for points in self._dots(line.raw, axis):
                    canvas.line(points, style)
        for line in lines:
            for points in self._dots(line.shown, axis):
                pattern = 0 if is_sparse(line.series.curve.metric) else line.series.mark
                canvas.line(points, line.style, 0 if line.series.run else pattern)
        for line in lines:
            self._draw_signs(canvas, line, axis)
        labels = self._end_labels(lines, axis)
        cursor = self._cursor_column()
        rows = []
        for y in range(axis.rows):
            label = axis.labels.get(y, "")
            parts = [
                Segment(f"{label:>{self._left}}", self._axis),
                Segment("┤" if label else "│", self._axis),
                *self._cells(canvas, y, cursor),
            ]
            text, style = labels.get(y, ("", self._axis))
            parts.append(Segment(f" {_fit(text, self._right - 1)}", style))
            rows.append(Strip(parts).adjust_cell_length(self._size.width))
        return rows

    def _cells(self, canvas: Canvas, y: int, cursor: int | None) -> list[Segment]:
        parts: list[Segment] = []
        text, style = "", None
        for x in range(canvas.width):
            char, own = canvas.cell(x, y)
            if x == cursor and char == " ":
                char, own = "│", self._cursor_style
            if own is not style and char != " ":
                if text:
                    parts.append(Segment(text, style))
                text, style = "", own
            text += char
        parts.append(Segment(text, style))
        return parts

    def _dots(
        self, segments: Sequence[tuple[list[float], list[float]]], axis: _ValueAxis
    ) -> list[list[Point]]:
        """The segments in dots of the canvas."""
        lo, scale = self._drawing.lo, self._scale()
        top, dots = axis.high, axis.dots
        return [
            [((x - lo) * scale, (top - y) * dots) for x, y in zip(xs, ys, strict=True)]
            for xs, ys in segments
        ]

    def _scale(self) -> float:
        """Dots per step."""
        return (2 * self._columns - 1) / max(1, self._drawing.hi - 1 - self._drawing.lo)

    def _draw_signs(self, canvas: Canvas, line: _Line, axis: _ValueAxis) -> None:
        """The signs of measured values, if they are not too many, and of a value without a line."""
        sparse = is_sparse(line.series.curve.metric)
        for points in self._dots(line.shown, axis):
            few = len(points) * _POINT_SPACING <= self._columns
            if line.series.run and len(points) > 1:
                continue  # the signs of the current run stay in sight
            sign = line.series.sign if sparse and not line.series.run else "•"
            if (sparse and few) or len(points) == 1:
                for point in points:
                    canvas.sign(point, sign, line.style)
            elif sparse:
                canvas.sign(points[-1], sign, line.style)

    def _end_labels(self, lines: list[_Line], axis: _ValueAxis) -> dict[int, tuple[str, Style]]:
        """By row: the labels of the curves, as near to their ends as they have room."""
        wanted = []
        for line in reversed(lines):  # the current run first: it gets the row that it wants
            if line.shown:
                label = line.series.label(self._drawing.cursor)
                wanted.append((axis.dot(line.shown[-1][1][-1]) / 4, label, line.style))
        placed: dict[int, tuple[float, str, Style]] = {}
        for end, label, style in wanted:
            free = [y for y in range(axis.rows) if y not in placed]
            if free:
                placed[min(free, key=lambda y: abs(y + 0.5 - end))] = end, label, style
        # The curve that ends higher has the higher label.
        ordered = sorted(placed.values(), key=lambda item: item[0])
        return {
            y: (label, style) for y, (_, label, style) in zip(sorted(placed), ordered, strict=True)
        }

    def _title_row(self, panel: Panel) -> Strip:
        title = f" {panel.title} "[: self._size.width - 4]
        rule = "─" * max(0, self._size.width - cell_len(title) - self._left - 1)
        parts = [
            Segment("─" * self._left + "┼", self._axis),
            Segment(title, self._title),
            Segment(rule, self._axis),
        ]
        return Strip(parts).adjust_cell_length(self._size.width)

    def _step_row(self) -> Strip:
        """The ticks of the axis of steps, or the step under the cursor."""
        lo, hi = self._drawing.lo, self._drawing.hi - 1
        line = [" "] * self._size.width
        cursor = self._cursor_column()
        positions = [] if cursor is not None else step_ticks(lo, hi, max(4, self._columns // 12))
        spacing = positions[1] - positions[0] if len(positions) > 1 else max(1, hi - lo)
        for step in positions:
            column = self._left + 1 + int((step - lo) * self._scale() / 2)
            text = step_label(step, spacing)
            start = min(max(0, column - len(text) // 2), self._size.width - len(text))
            if all(char == " " for char in line[max(0, start - 1) : start + len(text) + 1]):
                line[start : start + len(text)] = text
        if cursor is not None:
            text = f"step {self._drawing.cursor:,}"
            start = max(0, min(self._left + 1 + cursor - len(text) // 2, len(line) - len(text)))
            line[start : start + len(text)] = text
        style = self._axis if cursor is None else self._cursor_style
        unit = "" if cursor is not None or line[-5:] != [" "] * 5 else "step"
        line[len(line) - len(unit) :] = unit
        return Strip([Segment("".join(line), style)])

    def _cursor_column(self) -> int | None:
        cursor = self._drawing.cursor
        if cursor is None or not self._drawing.lo <= cursor < self._drawing.hi:
            return None
        return int((cursor - self._drawing.lo) * self._scale() + 0.5) // 2


class _ValueAxis:
    """The axis of one panel's values: its range, and its tick labels by row."""

    def __init__(self, lines: list[_Line], drawing: Drawing, rows: int) -> None:
        self.rows = rows
        values = [y for line in lines for y in line.values]
        low, high = value_range(values, clip=drawing.clip) or (0.0, 1.0)
        # The newest value of each curve is always inside.
        ends = [line.shown[-1][1][-1] for line in lines if line.shown]
        self.low, self.high = min(low, *ends, high), max(high, *ends, low)
        most = max(8, (rows + 1) // 2)  # of ticks on one row, the first is shown
        if drawing.log:
            shown = log_ticks(self.low, self.high, most)
            positions = [math.log10(value) for value in shown]
        else:
            shown = positions = ticks(self.low, self.high, most)
        self.labels: dict[int, str] = {}
        for position, label in zip(positions, tick_labels(shown), strict=True):
            row = int(self.dot(position) / 4)
            if self.low <= position <= self.high:
                self.labels.setdefault(min(max(row, 0), rows - 1), label)

    def dot(self, value: float) -> float:
        """The row of dots of a value, from the top."""
        return (self.high - value) * self.dots

    @property
    def dots(self) -> float:
        """Rows of dots for a value of 1."""
        return (4 * self.rows - 1) / (self.high - self.low)


def _fit(text: str, width: int) -> str:
    """The text in at most `width` cells; its value, at the end, stays."""
    if cell_len(text) <= width:
        return text
    name, _, value = text.rpartition(" ")
    room = width - cell_len(value) - 2
    return f"{name[:room]}… {value}" if room > 1 else value[:width]
