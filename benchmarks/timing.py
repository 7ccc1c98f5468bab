"""Measure ratios with interleaved repetitions: the median of the ratios of adjacent measurements.

Other load on the machine affects adjacent measurements alike, so their ratio is more reliable than
a ratio of two averages.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A measured value, its largest allowed value (None: no bound), and details."""

    value: float
    bound: float | None
    detail: dict[str, Any] = field(default_factory=dict)


def interleave(
    parts: Mapping[str, Callable[[int], object]], repetitions: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each part in each repetition, in the order A B, B A, A B, ...

    Each part is called with the number of the round. The first `warmup` rounds are not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(warmup + repetitions):
        names = list(parts)
        if number % 2:
            names.reverse()
        for name in names:
            began = time.perf_counter()
            parts[name](number)
            elapsed = time.perf_counter() - began
            if number >= warmup:
                seconds[name].append(elapsed)
    return seconds


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    bound: float | None,
    **detail: Any,
) -> Figure:
    """The median of the pairwise ratios, with their range and the medians of both sides."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Figure(
        statistics.median(ratios),
        bound,
        {
            "min": min(ratios),
            "max": max(ratios),
            "count": len(ratios),
            "median_numerator": statistics.median(numerators),
            "median_denominator": statistics.median(denominators),
            **detail,
        },
    )


def narrate(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)
