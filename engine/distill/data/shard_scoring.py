"""Score an expert's blocks into shards of cached targets, one shard after the other.

An interrupted scoring resumes at the next shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import torch

from engine.config import RunConfig
from engine.distill.align.blocks import TextBlock
from engine.distill.align.projection import Projector
from engine.distill.data.corpus import TextStats
from engine.distill.teacher.scoring import score_blocks
from engine.distill.teacher.sparse_targets import BlockTargets
from engine.distill.teacher.target_store import TargetStore
from engine.distill.teacher.teacher import Teacher

SHARD_POSITIONS = 16384
"""Scored positions after which a new shard begins."""
_BLOCKS_PER_CALL = 16


def score_into(
    store: TargetStore,
    blocks: Sequence[TextBlock],
    teacher: Teacher,
    projector: Projector,
    config: RunConfig,
    stats: TextStats,
    report: Callable[[int, int], None],
    with_teacher_nats: bool = False,
) -> None:
    """Score the blocks that the store does not hold yet, shard by shard.

    Args:
        stats: stored with the shards when they are complete.
        report: called with (blocks done, teacher tokens done) at least after each group of blocks;
            may raise to stop, and the shards that are complete then stay.
        with_teacher_nats: see `score_blocks`.
    """
    shards = _split(blocks)
    done = sum(len(shard) for shard in shards[: len(store.shards)])
    tokens = sum(len(b.teacher_ids) for b in blocks[:done])
    for number, shard in enumerate(shards):
        if number < len(store.shards):
            continue
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        scored: list[BlockTargets] = []
        for start in range(0, len(shard), _BLOCKS_PER_CALL):
            group = shard[start : start + _BLOCKS_PER_CALL]
            scored += score_blocks(
                teacher,
                projector,
                group,
                temperature=config.loss.temperature,
                top_k=config.targets.top_k,
                draws=config.targets.draws,
                epochs=config.targets.draw_epochs,
                generator=generator,
                heartbeat=lambda _, at=(done, tokens): report(*at),
                with_teacher_nats=with_teacher_nats,
            )
            done += len(group)
            tokens += sum(len(b.teacher_ids) for b in group)
            report(done, tokens)
        store.add(scored, projector.student_size)
    store.finish(asdict(stats))


def _split(blocks: Sequence[TextBlock]) -> list[list[TextBlock]]:
    """The blocks of each shard."""
    shards: list[list[TextBlock]] = []
    positions = SHARD_POSITIONS
    for block in blocks:
        if positions >= SHARD_POSITIONS:
            shards.append([])
            positions = 0
        shards[-1].append(block)
        positions += len(block.alignment)
    return shards
