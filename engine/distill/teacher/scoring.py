"""Run a loaded teacher over text blocks and project its next-token distributions into the student's
vocabulary.

Shapes: M teacher positions, N student positions, H hidden, V_t teacher and V_s student vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.chat import ChatRenderer
from engine.distill.align.alignment import Alignment, concatenate
from engine.distill.align.blocks import MIN_TEACHER_CONTEXT, ChatEncoder, TextBlock
from engine.distill.align.projection import Projected, Projector
from engine.distill.device import padded_length, to_device
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.sparse_targets import BlockTargets, collect_columns, sparsify, temper
from engine.distill.teacher.teacher import Teacher
from engine.out_of_memory import is_out_of_memory, release
from engine.sizing import PROJECTION_CHUNK, TOKENS_PER_PASS

_T = TypeVar("_T")

_MOST_DIVIDED = 64
"""The memory divisor of a teacher at which an out-of-memory error is final."""


def teacher_encoder(teacher: Teacher) -> ChatEncoder:
    """Encodes text for the expert."""

    renderer = ChatRenderer(teacher.tokenizer, teacher.chat_format)
    return ChatEncoder(teacher.tokenizer, renderer, teacher.end_ids, teacher.vocab_size)


def longest_block(max_seq_len: int, context: int | None) -> int:
    """The expert's tokens in a block, at most: its `context` may be shorter than is usual."""
    usual = max(max_seq_len, MIN_TEACHER_CONTEXT)
    return min(usual, context or usual)


@dataclass(frozen=True)
class TeacherOutput:
    """The expert's hidden states at the M scored positions of some blocks, (M, H)."""

    teacher: Teacher
    hidden: Tensor
    alignment: Alignment

    def logits(self, first: int, stop: int) -> Tensor:
        """(V_t, stop - first) float32 logits in columns."""
        return self.teacher.logits(self.hidden[first:stop])

    @torch.no_grad()
    def token_nats(self, chunk: int) -> Tensor:
        """(M,) float64 -log p of the realised teacher token at each position; 0 at ends of turn."""
        ids = torch.from_numpy(self.alignment.teacher_ids)
        nats = torch.zeros(len(ids), dtype=torch.float64)
        for first in range(0, len(ids), chunk):
            part = ids[first : first + chunk]
            z = self.logits(first, first + len(part))  # (V_t, n)
            index = part.clamp_min(0).to(z.device)
            nll = z.logsumexp(0) - z.gather(0, index[None])[0]
            nats[first : first + len(part)] = torch.where(part >= 0, nll.double().cpu(), 0.0)
        return nats

    def project(self, projector: Projector, chunk: int) -> Iterator[Projected]:
        """Projected distributions, about `chunk` teacher positions at a time, last text first."""
        with torch.no_grad():
            yield from projector.project(self.logits, self.alignment, chunk)


@torch.no_grad()
def teacher_forward(
    teacher: Teacher,
    blocks: Sequence[TextBlock],
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> TeacherOutput:
    """Run the expert over the blocks, in batches of similar length; a heartbeat before each."""
    order = sorted(range(len(blocks)), key=lambda n: len(blocks[n].teacher_ids))
    parts: list[Tensor | None] = [None] * len(blocks)
    while order:
        heartbeat(f"{teacher.spec.title} scores text")
        longest = len(blocks[order[-1]].teacher_ids)
        padded = padded_length(longest, teacher.device)
        longest = max(longest, min(padded, teacher.context or padded))
        limit = TOKENS_PER_PASS[teacher.device.type] // teacher.memory_divisor
        batch = order[-max(1, min(len(order), limit // longest)) :]
        try:
            hidden = _scored_states(teacher, [blocks[n] for n in batch], longest)
        except Exception as error:
            if len(batch) == 1 or not is_out_of_memory(error):
                raise
            failure = error
        else:
            for n, part in zip(batch, hidden, strict=True):
                parts[n] = part
            order = order[: -len(batch)]
            continue
        release(failure)
        del failure
        teacher.memory_divisor *= 2
    return TeacherOutput(
        teacher=teacher,
        hidden=torch.cat([part for part in parts if part is not None]),
        alignment=concatenate([block.alignment for block in blocks]),
    )


def _scored_states(teacher: Teacher, blocks: Sequence[TextBlock], longest: int) -> Sequence[Tensor]:
    """Hidden states at the scored positions of each block, (positions, H), from one pass."""
    ids = torch.zeros(len(blocks), longest, dtype=torch.int64)
    mask = torch.zeros(len(blocks), longest, dtype=torch.int64)
    for r, block in enumerate(blocks):
        size = len(block.teacher_ids)
        ids[r, :size] = torch.from_numpy(block.teacher_ids)
        mask[r, :size] = 1
    hidden = teacher.hidden_states(ids, mask)  # (B, L, H)
    at = [r * longest + block.teacher_scored - 1 for r, block in enumerate(blocks)]
    index = to_device(torch.from_numpy(np.concatenate(at)), hidden.device)
    return hidden.flatten(0, 1)[index].split([len(part) for part in at])


def projection_chunk(teacher: Teacher) -> int:
    """Teacher positions whose probabilities are in memory at a time."""
    return max(16, PROJECTION_CHUNK[teacher.device.type] // teacher.memory_divisor)


def _retried(teacher: Teacher, generator: torch.Generator, work: Callable[[], _T]) -> _T:
    """work(), again with smaller passes and the same draws after each out-of-memory error."""
    state = generator.get_state()
    while True:
        try:
            return work()
        except Exception as error:
            if teacher.memory_divisor >= _MOST_DIVIDED or not is_out_of_memory(error):
                raise
            failure = error
        release(failure)
        del failure
        teacher.memory_divisor *= 2
        generator.set_state(state)


def score_blocks(
    teacher: Teacher,
    projector: Projector,
    blocks: Sequence[TextBlock],
    *,
    temperature: float,
    top_k: int,
    draws: int,
    epochs: int,
    generator: torch.Generator,
    heartbeat: Callable[[str], None],
    with_teacher_nats: bool = False,
) -> list[BlockTargets]:
    """Sparse targets of the blocks, in their order.

    with_teacher_nats: also store the expert's own -log p of each text; computes the head's products
    a second time.
    """

    def score(group: Sequence[TextBlock]) -> tuple[dict[str, np.ndarray], list[float | None]]:
        output = teacher_forward(teacher, group, heartbeat)
        chunk = projection_chunk(teacher)
        parts = []
        for projected in output.project(projector, chunk):
            heartbeat(f"{teacher.spec.title} scores text")
            q_t = temper(projected.q, temperature)  # (V_s, n)
            parts.append((projected, sparsify(q_t, top_k, draws, epochs, generator)))
        columns = collect_columns(parts, len(output.alignment))
        nats: list[float | None] = [None] * len(group)
        if with_teacher_nats:
            sizes = [len(block.alignment.teacher_ids) for block in group]
            nats = [float(part.sum()) for part in output.token_nats(chunk).split(sizes)]
        return columns, nats

    scored: list[BlockTargets] = []
    limit = 4 * TOKENS_PER_PASS[teacher.device.type]
    start = 0
    while start < len(blocks):
        stop, tokens = start, 0
        while stop < len(blocks) and (stop == start or tokens < limit):
            tokens += len(blocks[stop].teacher_ids)
            stop += 1
        group = blocks[start:stop]
        columns, nats = _retried(teacher, generator, lambda group=group: score(group))
        start = stop
        edges = np.cumsum([0, *(len(block.alignment) for block in group)])
        for n, block in enumerate(group):
            arrays: dict[str, Any] = {
                name: array[edges[n] : edges[n + 1]] for name, array in columns.items()
            }
            scored.append(BlockTargets(block=block, teacher_nats=nats[n], **arrays))
    return scored


@dataclass(frozen=True)
class OnlineTargets:
    """Dense targets that are projected when they are requested."""

    output: TeacherOutput
    projector: Projector
    temperature: float
    device: torch.device
    """Device of the student, to which the targets are moved."""

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        """About `size` teacher positions at a time, from the end of the text to its start."""
        most = projection_chunk(self.output.teacher)
        for projected in self.output.project(self.projector, min(size, most)):
            q_t = temper(projected.q, self.temperature).t().to(self.device)  # (n, V_s)
            yield (
                projected.span,
                SoftTargets(
                    weight=projected.weight.to(self.device),
                    entropy=-torch.special.xlogy(q_t, q_t).sum(1),
                    dense=q_t,
                ),
            )
