"""Sources of training blocks and their soft targets: cached in shards, scored online, or in memory.

Every source implements the protocol `Source`. Streamed text is in `streams`, text that the student
wrote in `train.on_policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.distill.align.blocks import EncodedBlock, TextBlock
from engine.distill.align.projection import Projector
from engine.distill.data.cursors import TEXT_START, StreamPosition
from engine.distill.teacher.scoring import OnlineTargets, teacher_forward
from engine.distill.teacher.soft_targets import SoftSource, SoftTargets
from engine.distill.teacher.sparse_targets import BlockTargets, to_batch
from engine.distill.teacher.target_store import TargetStore
from engine.distill.teacher.teacher import Teacher

LoadTeacher = Callable[[], tuple[Teacher, Projector]]
"""Returns the expert, loaded if it is not in memory, and its projector."""


@dataclass(frozen=True)
class EpochBlocks:
    """The blocks of one epoch, which are shuffled and packed together."""

    token_counts: np.ndarray
    """Student tokens of each block, (blocks,) int64."""
    begins: StreamPosition = TEXT_START
    ends: StreamPosition = TEXT_START
    """Where the next epoch begins."""


class Source(Protocol):
    """Training blocks of one expert, in epochs.

    An epoch is one pass over text in memory or in shards, or one window of streamed text.
    """

    def open_epoch(self, epoch: int, begins: StreamPosition) -> EpochBlocks:
        """The blocks of the epoch, which begins at `begins`."""
        ...

    def release_before(self, epoch: int) -> None:
        """Free the blocks of earlier epochs: they will not be read again."""
        ...

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        """One block of an epoch that is open."""
        ...

    def soft_targets(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftSource:
        """Soft targets of the blocks' scored positions, one block after the other."""
        ...


class FixedSource(Source, Protocol):
    """A source that has the same blocks in each epoch."""

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        ...

    def open_epoch(self, epoch: int, begins: StreamPosition) -> EpochBlocks:
        return EpochBlocks(self.token_counts())

    def release_before(self, epoch: int) -> None:
        """Nothing to free: every epoch reads the same blocks."""


@dataclass(frozen=True)
class CachedSource(FixedSource):
    """Blocks whose targets are stored in shards."""

    store: TargetStore

    def token_counts(self) -> np.ndarray:
        return self.store.token_counts()

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        return self.store.block(index)

    def soft_targets(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftTargets:
        return SoftTargets.of(self.store.targets(blocks, epoch).to(device))


@dataclass(frozen=True)
class InMemorySource(FixedSource):
    """Blocks whose sparse targets are in memory, as shards would store them."""

    scored: Sequence[BlockTargets]

    def token_counts(self) -> np.ndarray:
        return _token_counts([part.block for part in self.scored])

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        return self.scored[index].block.for_student

    def soft_targets(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftTargets:
        return SoftTargets.of(to_batch([self.scored[n] for n in blocks], epoch).to(device))


@dataclass(frozen=True)
class OnlineSource(FixedSource):
    """Blocks that the expert scores while the student trains; no targets are stored."""

    blocks: Sequence[TextBlock]
    load_teacher: LoadTeacher
    temperature: float

    def token_counts(self) -> np.ndarray:
        return _token_counts(self.blocks)

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        return self.blocks[index].for_student

    def soft_targets(
        self, blocks: Sequence[int], epoch: int, device: torch.device
    ) -> OnlineTargets:
        teacher, projector = self.load_teacher()
        output = teacher_forward(teacher, [self.blocks[n] for n in blocks])
        return OnlineTargets(output, projector, self.temperature, device)


def _token_counts(blocks: Sequence[TextBlock]) -> np.ndarray:
    return np.array([len(block.student_ids) for block in blocks], dtype=np.int64)
