"""`projection_share`: time to project the expert's distributions into the student's vocabulary,
relative to the expert's forward pass.

The forward pass is the trunk, the head at the scored positions and the softmax; the projection is
everything else in `TeacherOutput.project`. Both are measured in the same pass over real text.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.timing import Figure, ratio
from benchmarks.workbench import Workbench
from engine.distill.align import projection
from engine.distill.align.projection import Projector
from engine.distill.data.sources import OnlineSource
from engine.distill.teacher.scoring import TeacherOutput, projection_chunk, teacher_forward
from engine.distill.teacher.sparse_targets import sparsify, temper

BOUND = 0.10
REPETITIONS = 10
BLOCKS = 8


class _Clock:
    """Sums the seconds of the calls of the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += time.perf_counter() - began

        return call


def measure(bench: Workbench) -> dict[str, Figure]:
    source, _ = bench.prepared("online").sources[bench.expert.name]
    assert isinstance(source, OnlineSource)
    teacher, projector = source.load_teacher()
    targets = bench.config.targets
    shape = (targets.top_k, targets.draws, targets.draw_epochs)
    generator = torch.Generator().manual_seed(0)
    chunk = projection_chunk(teacher)
    projected: list[float] = []
    forward: list[float] = []
    kept: list[float] = []
    for number in range(1 + REPETITIONS):
        first = number * BLOCKS % max(1, len(source.blocks) - BLOCKS)
        began = time.perf_counter()
        output = teacher_forward(teacher, source.blocks[first : first + BLOCKS])
        trunk = time.perf_counter() - began
        rest, head_and_softmax, shard = _project(output, projector, chunk, shape, generator)
        if number:  # the first warms up
            projected.append(rest)
            forward.append(trunk + head_and_softmax)
            kept.append(shard)
    return {
        "projection_share": ratio(projected, forward, BOUND),
        "shard_share": ratio(kept, forward, None),
    }


def _project(
    output: TeacherOutput,
    projector: Projector,
    chunk: int,
    shape: tuple[int, int, int],
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """Seconds of (the projection, head and softmax, sparsification for the shard)."""
    teacher, shard = _Clock(), _Clock()
    keep = shard.timed(lambda q: sparsify(temper(q, 2.0), *shape, generator))
    softmax = teacher.timed(projection._softmax_columns)
    began = time.perf_counter()
    with torch.no_grad(), patch.object(projection, "_softmax_columns", softmax):
        for part in projector.project(teacher.timed(output.logits), output.alignment, chunk):
            keep(part.q)
    elapsed = time.perf_counter() - began
    return elapsed - teacher.seconds - shard.seconds, teacher.seconds, shard.seconds
