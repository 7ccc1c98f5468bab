"""Axes of charts: ticks, the range of values, and numbers of steps as labels. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from gladius_tui.format import axis_number

LEAST_TICKS = 4
_CLIP = 0.01
"""Share of the values at each end that a clipped axis may leave out."""
_CLIP_GAIN = 1.25
"""An axis is clipped only if its whole range is longer by this factor."""
_MARGIN = 0.03
_STEPS = (1.0, 2.0, 2.5, 5.0)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers from low to high, at least four of them if `most` allows it.

    The largest spacing of 1, 2, 2.5 or 5 times 10^n that gives four; of more than `most` numbers
    some are left out evenly.
    """
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = math.floor(math.log10(span)) + 1
    found: list[float] = []
    for exponent in (power, power - 1, power - 2):
        for factor in reversed(_STEPS):
            step = factor * 10.0**exponent
            finer = _multiples(low, high, step)
            if len(finer) > most and most < LEAST_TICKS and found:
                return found
            found = finer or found
            if len(found) >= LEAST_TICKS:
                return found[:: -(-len(found) // most)]
    return found or [low]


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the digits of the step, so that 3 * 0.1 is 0.3.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(first, last + 1)] if last - first < 100 else []


def step_ticks(lo: int, hi: int, most: int) -> list[int]:
    """Whole steps from lo to hi, round ones, at most `most`."""
    if hi <= lo:
        return [lo]
    return [round(x) for x in ticks(lo, hi, max(2, most)) if float(x).is_integer()] or [lo, hi]


def step_label(step: int, spacing: int) -> str:
    """A step as the label of an axis whose ticks are `spacing` apart: `12k`, `12,480`."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if step >= unit and spacing * 1000 >= unit:
            text = f"{step / unit:.3f}".rstrip("0").rstrip(".")
            if spacing >= unit / 100 and float(text) * unit == step:
                return f"{text}{name}"
    return f"{step:,}"


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
        if len(found) >= LEAST_TICKS:
            break
    if len(found) < LEAST_TICKS:
        linear = [v for v in ticks(10**low, 10**high, most) if v > 0]
        found = linear if len(linear) > len(found) else found
    return found[:: -(-len(found) // most)] if found else [10**low]


def value_range(values: Sequence[float], *, clip: bool) -> tuple[float, float] | None:
    """The range of an axis, with a small margin; None without values.

    With `clip` it is the range from the 1st to the 99th percentile, if that is much smaller.
    """
    if not values:
        return None
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if clip:
        last = len(ordered) - 1
        inner = ordered[math.floor(_CLIP * last)], ordered[math.ceil((1 - _CLIP) * last)]
        if inner[1] > inner[0] and high - low > _CLIP_GAIN * (inner[1] - inner[0]):
            low, high = inner
    if low == high:
        half = abs(low) / 2 or 0.5
        return low - half, high + half
    margin = (high - low) * _MARGIN
    return low - margin, high + margin


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of the ticks of one axis, with digits enough to tell them apart."""
    labels = [axis_number(value) for value in values]
    if len(set(labels)) == len(labels):
        return labels
    spacing = min(abs(b - a) for a, b in pairwise(values))
    digits = max(0, 1 - math.floor(math.log10(spacing))) if spacing > 0 else 3
    return [f"{value:.{min(digits, 6)}f}" for value in values]
