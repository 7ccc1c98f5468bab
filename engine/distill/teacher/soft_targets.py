"""Soft targets as the loss reads them: sparse or dense distributions over the student's vocabulary,
chunk by chunk.

Shapes: N positions, K sparse entries, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from engine.distill.teacher.sparse_targets import TargetBatch


class SoftSource(Protocol):
    """Soft targets of N positions, in chunks; each position is in one chunk."""

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        """Slices of the N positions, about `size` of them at a time, in any order."""
        ...


@dataclass(frozen=True)
class SoftTargets:
    """Target distributions of N positions: sparse (cached) or dense (online).

    Attributes:
        weight: (N,) float32 w; 0 where there is no soft target.
        entropy: (N,) float32 of q_T in nats.
        ids, mass: (N, K) sparse entries, or None.
        top_k: the first top_k entries are exact, the others are draws; None: all are exact.
        dense: (N, V) q_T, or None.
        text_weight: factor on the cross-entropy; 0 where the student wrote the text itself.
    """

    weight: Tensor
    entropy: Tensor
    ids: Tensor | None = None
    mass: Tensor | None = None
    dense: Tensor | None = None
    text_weight: float = 1.0
    top_k: int | None = None

    @classmethod
    def of(cls, batch: TargetBatch) -> SoftTargets:
        """Sparse targets."""
        return cls(
            weight=batch.weight,
            entropy=batch.entropy,
            ids=batch.ids,
            mass=batch.mass,
            top_k=batch.top_k,
        )

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        for span in spans(len(self.weight), size):
            yield span, self._slice(span)

    def _slice(self, span: slice) -> SoftTargets:
        return SoftTargets(
            weight=self.weight[span],
            entropy=self.entropy[span],
            ids=None if self.ids is None else self.ids[span],
            mass=None if self.mass is None else self.mass[span],
            dense=None if self.dense is None else self.dense[span],
            text_weight=self.text_weight,
            top_k=self.top_k,
        )


@dataclass(frozen=True)
class OnPolicyTargets:
    """Targets of text that the student wrote: the expert's distribution without cross-entropy."""

    source: SoftSource

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        for span, targets in self.source.chunks(size):
            yield span, replace(targets, text_weight=0.0)


@dataclass(frozen=True)
class ChainedTargets:
    """Several sources, one after the other: (number of positions, source)."""

    parts: Sequence[tuple[int, SoftSource]]

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        offset = 0
        for positions, source in self.parts:
            for span, targets in source.chunks(size):
                yield slice(offset + span.start, offset + span.stop), targets
            offset += positions


def spans(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` items, `size` at a time."""
    for lo in range(0, count, size):
        yield slice(lo, min(lo + size, count))
