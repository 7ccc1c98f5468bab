"""Sources of training blocks and their soft targets: cached shards, memory, or a running expert."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.distill.align.blocks import EncodedBlock, TextBlock
from engine.distill.align.projection import Projector
from engine.distill.teacher.scoring import OnlineTargets, teacher_forward
from engine.distill.teacher.soft_targets import SoftSource, SoftTargets
from engine.distill.teacher.sparse_targets import BlockTargets, to_batch
from engine.distill.teacher.target_store import TargetStore
from engine.distill.teacher.teacher import Teacher


class Source(Protocol):
    """Training blocks that one expert teaches."""

    own: bool
    """Whether the student wrote them itself: then nothing is learnt but the expert's opinion."""

    def row(self, block: int, epoch: int = 0) -> EncodedBlock: ...

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftSource:
        """Soft targets of the blocks' scored positions, one block after the other."""
        ...


@dataclass(frozen=True)
class CachedSource:
    """Training blocks whose targets lie in shards."""

    store: TargetStore
    own = False

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        return self.store.token_counts()

    def row(self, block: int, epoch: int = 0) -> EncodedBlock:
        return self.store.block(block)

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftTargets:
        return SoftTargets.of(self.store.targets(blocks, epoch).to(device))


@dataclass(frozen=True)
class InMemorySource:
    """Blocks whose targets lie in memory, as shards would keep them."""

    scored: Sequence[BlockTargets]

    def row(self, block: int, epoch: int = 0) -> EncodedBlock:
        b = self.scored[block].block
        return EncodedBlock(b.student_ids, b.student_scored, b.is_end, b.text_bytes)

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftTargets:
        parts = [self.scored[n] for n in blocks]
        return SoftTargets.of(to_batch(parts, epoch).to(device))


@dataclass(frozen=True)
class OnlineSource:
    """Training blocks that the expert scores while the student trains; nothing is kept."""

    blocks: Sequence[TextBlock]
    teacher: Callable[[], tuple[Teacher, Projector]]
    temperature: float
    own = False

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        return np.array([len(block.student_ids) for block in self.blocks], dtype=np.int64)

    def row(self, block: int, epoch: int = 0) -> EncodedBlock:
        b = self.blocks[block]
        return EncodedBlock(b.student_ids, b.student_scored, b.is_end, b.text_bytes)

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> OnlineTargets:
        teacher, projector = self.teacher()
        output = teacher_forward(teacher, [self.blocks[n] for n in blocks])
        return OnlineTargets(output, projector, self.temperature, device)
