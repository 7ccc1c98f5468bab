"""Owns how a ratio is measured: interleaved repetitions, the median of the ratios of neighbours.

Two things that are timed in turns share whatever else loads the machine, so a ratio of neighbours
says more than a ratio of two averages.
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
    """A measured ratio, the most it may be (None: told for comparison), and how it came about."""

    value: float
    bound: float | None
    detail: dict[str, Any] = field(default_factory=dict)


def interleave(
    parts: Mapping[str, Callable[[int], object]], repetitions: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each part in each repetition: A B, B A, A B ... Calls get the round's number.

    The first `warmup` rounds are not counted.
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
    above: Sequence[float], below: Sequence[float], bound: float | None, **detail: Any
) -> Figure:
    """The median of the pairwise ratios, with their spread and the medians of both sides."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return Figure(
        statistics.median(ratios),
        bound,
        {
            "min": min(ratios),
            "max": max(ratios),
            "count": len(ratios),
            "median_numerator": statistics.median(above),
            "median_denominator": statistics.median(below),
            **detail,
        },
    )


def say(text: str) -> None:
    """Narration, on standard error."""
    print(text, file=sys.stderr, flush=True)
