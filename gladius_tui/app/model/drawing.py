"""What a chart shows: panels of curves over one range of steps. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from gladius_tui.app.model.curves import Curve, Segment, on_log
from gladius_tui.app.model.metrics import LINE_MARKS, POINT_MARKS, is_sparse, title_of
from gladius_tui.format import NONE, axis_number


@dataclass
class Series:
    """A curve as it is drawn."""

    curve: Curve
    colour: int = 0
    """Index into the chart's colours; of a former run: into the colours of former runs."""
    mark: int = 0
    """Index of its line pattern and of the sign of its measured values."""
    run: str = ""
    """Title of the former run that it belongs to; "" for the current run."""

    @property
    def sign(self) -> str:
        """The sign before its label."""
        if self.run:
            return "┄"
        signs = POINT_MARKS if is_sparse(self.curve.metric) else LINE_MARKS
        return signs[self.mark % len(signs)]

    def label(self, cursor: int | None) -> str:
        """Its name, and its newest value or the one at the cursor."""
        value = self.curve.last_value if cursor is None else self.curve.value_at(cursor)
        return f"{self.sign}{self.run or title_of(self.curve.metric)} {value_text(value)}"


def value_text(value: float | None) -> str:
    """The value of a curve with three or four digits."""
    if value is None:
        return NONE
    if value and (abs(value) < 1e-2 or abs(value) >= 1000):
        return axis_number(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


@dataclass
class Panel:
    """Curves of one unit."""

    key: str
    title: str
    series: list[Series] = field(default_factory=list)


@dataclass
class Drawing:
    """Everything that a chart shows: panels over the steps lo <= step < hi."""

    panels: list[Panel] = field(default_factory=list)
    lo: int = 0
    hi: int = 1
    log: bool = False
    smoothing: float | None = None
    """Factor of the moving average; None draws the raw values."""
    clip: bool = True
    """Whether the axes leave out the smallest and the largest 1% of the values."""
    cursor: int | None = None
    """The step whose values are shown; None: the newest values are."""

    def snapshot(self) -> Drawing:
        """A copy that does not grow."""
        panels = [
            Panel(
                panel.key,
                panel.title,
                [
                    Series(Curve(s.curve.metric, list(s.curve.columns)), s.colour, s.mark, s.run)
                    for s in panel.series
                ],
            )
            for panel in self.panels
        ]
        return Drawing(panels, self.lo, self.hi, self.log, self.smoothing, self.clip, self.cursor)

    def visible(self, segments: list[Segment]) -> list[Segment]:
        """The points in the range of steps; curves begin before it, to warm up their moving
        averages."""
        visible = []
        for xs, ys in on_log(segments) if self.log else segments:
            inside = [(x, y) for x, y in zip(xs, ys, strict=True) if self.lo <= x < self.hi]
            if inside:
                visible.append(([x for x, _ in inside], [y for _, y in inside]))
        return visible


_FIRST_ROWS, _OTHER_ROWS = 7, 6
"""Rows that the first panel needs, and each further one with its title."""


def panel_rows(panels: int, rows: int) -> list[int]:
    """Rows of the panels that fit into `rows`, titles of all but the first included.

    The first panel is as high as two others, if it can be.
    """
    count = max(1, min(panels, 1 + (rows - _FIRST_ROWS) // _OTHER_ROWS))
    if count == 1:
        return [rows]
    other = max(_OTHER_ROWS, rows // (count + 1))
    return [rows - other * (count - 1), *[other] * (count - 1)]
