"""Soft targets as the loss reads them: sparse or dense distributions over the student's vocabulary,
handed out chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from engine.distill.teacher.targets import TargetBatch


class SoftSource(Protocol):
    """Soft targets of N positions, given out chunk by chunk, each position once."""

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        """Slices of the N positions, about `size` of them at a time, in any order."""
        ...


@dataclass(frozen=True)
class SoftTargets:
    """What the positions of one call shall become: sparse (cached) or dense (online) targets.

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
        return cls(
            weight=batch.weight,
            entropy=batch.entropy,
            ids=batch.ids,
            mass=batch.mass,
            top_k=batch.top_k,
        )

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        for span in spans(len(self.weight), size):
            yield span, _slice(self, span)


@dataclass(frozen=True)
class OnPolicyTargets:
    """Targets of text that the student wrote: the expert's opinion, and no text to follow."""

    source: SoftSource

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        for span, targets in self.source.chunks(size):
            yield span, replace(targets, text_weight=0.0)


@dataclass(frozen=True)
class ChainedTargets:
    """Several sources, one after the other: (positions, source)."""

    parts: Sequence[tuple[int, SoftSource]]

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        at = 0
        for positions, source in self.parts:
            for span, targets in source.chunks(size):
                yield slice(at + span.start, at + span.stop), targets
            at += positions


def spans(count: int, size: int) -> Iterator[slice]:
    """Slices that cover `count` items, `size` at a time."""
    for lo in range(0, count, size):
        yield slice(lo, min(lo + size, count))


def _slice(soft: SoftTargets, span: slice) -> SoftTargets:
    cut = lambda t: None if t is None else t[span]  # noqa: E731
    return SoftTargets(
        weight=soft.weight[span],
        entropy=soft.entropy[span],
        ids=cut(soft.ids),
        mass=cut(soft.mass),
        dense=cut(soft.dense),
        text_weight=soft.text_weight,
        top_k=soft.top_k,
    )
