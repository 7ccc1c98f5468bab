"""Arithmetic of charts: the visible range of steps, curves that grow by live values, smoothing.
Pure.

`engine.run.rollup` reduces long ranges to columns; `widgets.chart_sketch` draws the result.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from engine.run.rollup import Column
from gladius_tui.app.model.metrics import is_sparse

SMOOTHINGS: tuple[float | None, ...] = (0.98, 0.995, None, 0.9)
"""Factors of the moving average, in the order in which the key cycles; None: raw values only."""
LEAST_SPAN = 16
"""The smallest range of steps that can be zoomed into."""

Segment = tuple[list[float], list[float]]
"""x and y values of a line without gaps."""


@dataclass(frozen=True)
class View:
    """The range of steps that a chart shows."""

    span: int | None = None
    """Number of steps; None: the whole run."""
    end: int | None = None
    """Last step; None: the newest one."""

    def bounds(self, newest: int) -> tuple[int, int]:
        """The range lo <= step < hi."""
        if self.span is None:
            return 0, newest + 1
        end = newest if self.end is None else min(self.end, newest)
        end = max(end, min(self.span, newest))
        return max(0, end + 1 - self.span), end + 1

    def zoomed(self, factor: float, newest: int, at: int | None = None) -> View:
        """A range `factor` times as long: the step `at` keeps its place; without it, the range ends
        at the newest step or keeps its middle."""
        lo, hi = self.bounds(newest)
        span = max(LEAST_SPAN, round((hi - lo) * factor))
        if span >= newest:
            return View()
        if at is not None:
            share = (at - lo) / max(1, hi - 1 - lo)
            return View(span, _end(round(at + (1 - share) * (span - 1)), span, newest))
        if self.end is None:
            return View(span)
        return View(span, _end((lo + hi) // 2 + span // 2, span, newest))

    def panned(self, share: float, newest: int) -> View:
        """Moved by a share of the range; at the newest step it follows the run again."""
        lo, hi = self.bounds(newest)
        if self.span is None:
            return self
        return View(self.span, _end(hi - 1 + round(share * (hi - lo)), self.span, newest))


def _end(end: int, span: int, newest: int) -> int | None:
    end = max(end, span - 1)
    return None if end >= newest else end


@dataclass
class Curve:
    """One metric over the steps of a chart, reduced to columns."""

    metric: str
    columns: list[Column] = field(default_factory=list)
    most: int = 2
    """Columns that the chart has room for."""
    last_step: int = -1
    """The last step whose value was added."""

    def add(self, step: int, value: float | None) -> bool:
        """Add a live value. False if the curve must be read again: it has become too long, or the
        run went back to an earlier step."""
        if step <= self.last_step:
            return False
        self.last_step = step
        if not self.columns:
            self.columns.append(Column(start=step, stop=step + 1))
        width = self.columns[-1].stop - self.columns[-1].start
        while self.columns[-1].stop <= step:
            if len(self.columns) > 4 * self.most:
                return False
            begin = self.columns[-1].stop
            self.columns.append(Column(start=begin, stop=begin + width))
        at = bisect_right(self.columns, step, key=lambda column: column.start) - 1
        if at >= 0 and value is not None and math.isfinite(value):
            self.columns[at] = _with(self.columns[at], value)
        return len(self.columns) <= self.most + self.most // 4

    @property
    def last_value(self) -> float | None:
        """The newest value."""
        return next((c.last for c in reversed(self.columns) if c.last is not None), None)

    def value_at(self, step: int) -> float | None:
        """The value at a step: the mean of the column that has it; of a metric that is measured now
        and then, the last value up to the step. None where there is none."""
        at = bisect_right(self.columns, step, key=lambda column: column.start) - 1
        while at >= 0:
            column = self.columns[at]
            if column.count:
                if is_sparse(self.metric):
                    return column.last
                return column.last if column.mean is None else column.mean
            if not is_sparse(self.metric):
                return None
            at -= 1
        return None

    def raw(self, hi: int | None = None) -> list[Segment]:
        """The values up to the step before `hi`: one point for a column with one value, else its
        minimum and maximum."""
        segments: list[Segment] = []
        gap = True
        for column in self._before(hi):
            if not column.count or column.low is None or column.high is None:
                gap = gap or not is_sparse(self.metric)
                continue
            if gap:
                segments.append(([], []))
                gap = False
            x = _middle(column, hi)
            ys = [column.low] if column.low == column.high else [column.low, column.high]
            if len(ys) == 2 and (column.first or 0.0) > (column.last or 0.0):
                ys.reverse()
            segments[-1][0].extend([x] * len(ys))
            segments[-1][1].extend(ys)
        return segments

    def smooth(self, factor: float, hi: int | None = None) -> list[Segment]:
        """The exponential moving average over steps up to the one before `hi`, approximated from
        columns: a column of n values counts as n times its mean. The weights are normalised (as in
        Adam's bias correction), so the average does not lag at the beginning."""
        segments: list[Segment] = []
        total = weight = 0.0
        gap = True
        for column in self._before(hi):
            if not column.count or column.low is None or column.high is None:
                gap = gap or not is_sparse(self.metric)
                continue
            mean = column.mean if column.mean is not None else (column.low + column.high) / 2
            kept = factor**column.count
            total = kept * total + (1 - kept) * mean
            weight = kept * weight + (1 - kept)
            if gap:
                segments.append(([], []))
                gap = False
            segments[-1][0].append(_middle(column, hi))
            segments[-1][1].append(total / weight)
        return segments

    def _before(self, hi: int | None) -> list[Column]:
        return self.columns if hi is None else [c for c in self.columns if c.start < hi]


def _middle(column: Column, hi: int | None) -> float:
    """The x value of a column. The last one may extend beyond the chart: the newest value must not
    be drawn outside it."""
    stop = column.stop if hi is None else min(column.stop, hi)
    return (column.start + stop - 1) / 2


def _with(column: Column, value: float) -> Column:
    low = value if column.low is None else min(column.low, value)
    high = value if column.high is None else max(column.high, value)
    before = 0.0 if column.mean is None else column.mean * column.count
    known = column.count == 0 or column.mean is not None
    return msgspec.structs.replace(
        column,
        low=low,
        high=high,
        first=value if column.first is None else column.first,
        last=value,
        count=column.count + 1,
        mean=(before + value) / (column.count + 1) if known else None,
    )


def on_log(segments: Sequence[Segment]) -> list[Segment]:
    """The lines on a logarithmic axis (y becomes log10 y); values <= 0 are gaps."""
    found: list[Segment] = []
    for xs, ys in segments:
        gap = True
        for x, y in zip(xs, ys, strict=True):
            if y <= 0:
                gap = True
                continue
            if gap:
                found.append(([], []))
                gap = False
            found[-1][0].append(x)
            found[-1][1].append(math.log10(y))
    return found
