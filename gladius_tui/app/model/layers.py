"""The student's layers as strips of eight steps: which change most, which not at all. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from engine.events import LayerStats

BLOCKS = "▁▂▃▄▅▆▇█"
"""The eight steps."""
DEAD, EXPLODING = "·", "!"
_STEP = 1.5
"""Ratio of two steps. The median of all layers is in the middle."""
_FAR = 10.0
"""A layer that differs from the median by this factor is dead or exploding."""
_LABELS = {"attention": "attn", "mlp": "mlp", "embeddings": "embed", "head": "head"}


@dataclass(frozen=True)
class Cell:
    """One layer.

    Attributes:
        name: such as `attn 3` or `head`.
        value: the measured ratio; None where it was not finite.
        level: 0 to 7; -1 for dead, 8 for exploding (or not finite).
    """

    name: str
    value: float | None
    level: int

    @property
    def sign(self) -> str:
        """Its character in the strip."""
        if self.level < 0:
            return DEAD
        return EXPLODING if self.level >= len(BLOCKS) else BLOCKS[self.level]


def layer_cells(stats: LayerStats, what: str) -> dict[str, list[Cell]]:
    """The layers by kind (attn, mlp, embed, head).

    Args:
        what: "update" (relative change over the interval) or "moved" (distance from the initial
            weights).
    """
    values = {group.kind: getattr(group, what) for group in stats.groups}
    known = [v for row in values.values() for v in row if v is not None and math.isfinite(v)]
    middle = statistics.median(known) if known else 0.0
    found: dict[str, list[Cell]] = {}
    for kind, row in values.items():
        label = _LABELS[kind]
        names = (
            [label] if kind in ("embeddings", "head") else [f"{label} {n}" for n in range(len(row))]
        )
        found[label] = [
            Cell(name, value, _level(value, middle)) for name, value in zip(names, row, strict=True)
        ]
    return found


def _level(value: float | None, middle: float) -> int:
    if value is None or not math.isfinite(value):
        return len(BLOCKS)
    if value <= 0 or (middle > 0 and value < middle / _FAR):
        return -1 if middle > 0 else 0
    if middle > 0 and value > middle * _FAR:
        return len(BLOCKS)
    level = len(BLOCKS) / 2 + math.log(value / middle) / math.log(_STEP)
    return min(max(math.floor(level), 0), len(BLOCKS) - 1)


def extremes(cells: Sequence[Cell]) -> tuple[Cell, Cell] | None:
    """The layers with the smallest and the largest value."""
    known = [cell for cell in cells if cell.value is not None]
    if not known:
        return None
    return (
        min(known, key=lambda cell: cell.value or 0.0),
        max(known, key=lambda cell: cell.value or 0.0),
    )


def strip_of(cells: Sequence[Cell], width: int) -> list[Cell]:
    """The cells of a strip of at most `width`: of layers that share a place, the most extreme."""
    share = -(-len(cells) // max(1, width))
    return [
        max(cells[n : n + share], key=lambda cell: abs(cell.level - 3.5))
        for n in range(0, len(cells), share)
    ]
