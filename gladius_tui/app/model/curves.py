"""Arithmetic of charts: the visible range of steps, curves that grow by live values, smoothing and
axis ticks. Pure.

`engine.run.rollup` reduces long ranges to columns; `widgets.chart_sketch` draws the result.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from engine.run.rollup import STEP_METRICS, Column

SMOOTHINGS: tuple[float | None, ...] = (0.98, 0.995, None, 0.9)
"""Factors of the moving average, in the order in which the key cycles; None: raw values only."""
LEAST_SPAN = 16
"""The smallest range of steps that can be zoomed into."""

Segment = tuple[list[float], list[float]]
"""x and y values of a line without gaps."""

TITLES = {
    "bits_per_byte": "held-out",
    "grad_norm": "gradient",
    "tokens_per_sec": "tok/s",
    "step_seconds": "s/step",
}


def title_of(metric: str) -> str:
    """The title of a metric: `kl/qwen` becomes `kl qwen`."""
    name, _, expert = metric.partition("/")
    title = {"bits_per_byte": "b/B"}.get(name, name) if expert else TITLES.get(name, name)
    return f"{title} {expert}".strip()


def unit_of(metric: str) -> str:
    """The unit of a metric; metrics of one unit share an axis."""
    name = metric.partition("/")[0]
    if name in ("loss", "kl", "ce", "bits_per_byte"):
        return "nats"  # bits per byte have the same range of values
    return name


def is_sparse(metric: str) -> bool:
    """Whether a metric is measured only at evaluations; steps without a value are then no gaps."""
    return metric not in STEP_METRICS


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

    def zoomed(self, factor: float, newest: int) -> View:
        """A range `factor` times as long, ending at the newest step or around the same middle."""
        lo, hi = self.bounds(newest)
        span = max(LEAST_SPAN, round((hi - lo) * factor))
        if span >= newest:
            return View()
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

    def raw(self) -> list[Segment]:
        """The values: one point for a column with one value, else its minimum and maximum."""
        segments: list[Segment] = []
        gap = True
        for column in self.columns:
            if not column.count or column.low is None or column.high is None:
                gap = gap or not is_sparse(self.metric)
                continue
            if gap:
                segments.append(([], []))
                gap = False
            x = (column.start + column.stop - 1) / 2
            ys = [column.low] if column.low == column.high else [column.low, column.high]
            if len(ys) == 2 and (column.first or 0.0) > (column.last or 0.0):
                ys.reverse()
            segments[-1][0].extend([x] * len(ys))
            segments[-1][1].extend(ys)
        return segments

    def smooth(self, factor: float) -> list[Segment]:
        """The exponential moving average over steps, approximated from columns: a column of n
        values counts as n times its mean. The weights are normalised (as in Adam's bias
        correction), so the average does not lag at the beginning."""
        segments: list[Segment] = []
        total = weight = 0.0
        gap = True
        for column in self.columns:
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
            segments[-1][0].append((column.start + column.stop - 1) / 2)
            segments[-1][1].append(total / weight)
        return segments


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


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` (2 or more) round numbers from low to high, spaced by 1, 2 or 5 times 10^n."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 5, 10, 20):
        first, last = (
            math.ceil(low / (step * factor) - 1e-9),
            math.floor(high / (step * factor) + 1e-9),
        )
        if last - first + 1 <= most:
            return [n * step * factor for n in range(first, last + 1)] or [low]
    return [low, high]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` (2 or more) round values whose log10 is between low and high."""
    found: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 4, 6, 8)):
        finer = [
            factor * 10.0**exponent
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low - 1e-9 <= math.log10(factor * 10.0**exponent) <= high + 1e-9
        ]
        if len(finer) > most and len(found) > 1:
            break
        found = finer
    if len(found) < 2:
        return [v for v in ticks(10**low, 10**high, most) if v > 0]
    return found[:: -(-len(found) // most)]
