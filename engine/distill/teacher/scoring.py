"""Run a loaded teacher over text blocks and project its next-token distributions into the student's
vocabulary.

Shapes: M teacher positions, N student positions, H hidden, V_t teacher and V_s student vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.chat import ChatRenderer
from engine.distill.align.alignment import Alignment, concatenate
from engine.distill.align.blocks import LENGTH_STEP, ChatEncoder, TextBlock
from engine.distill.align.projection import Projected, Projector
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.sparse_targets import BlockTargets, collect_columns, sparsify, temper
from engine.distill.teacher.teacher import Teacher

_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


def teacher_encoder(teacher: Teacher) -> ChatEncoder:
    """Encodes text for the expert."""

    renderer = ChatRenderer(teacher.tokenizer, teacher.chat_format)
    vocab_size = teacher.head[0].shape[0]
    return ChatEncoder(teacher.tokenizer, renderer, teacher.end_ids, vocab_size)


@dataclass(frozen=True)
class TeacherOutput:
    """The expert's hidden states at the M scored positions of some blocks, (M, H)."""

    teacher: Teacher
    hidden: Tensor
    alignment: Alignment

    def logits(self, first: int, stop: int) -> Tensor:
        """(V_t, stop - first) float32 logits in columns."""
        weight, bias = self.teacher.head
        z = (weight @ self.hidden[first:stop].t()).float()
        if bias is not None:
            z += bias.float()[:, None]
        cap = self.teacher.logit_softcap
        return z if cap is None else z.div_(cap).tanh_().mul_(cap)

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
    limit = _TOKENS_PER_PASS.get(teacher.device.type, 4096)
    order = sorted(range(len(blocks)), key=lambda n: len(blocks[n].teacher_ids))
    parts: list[Tensor | None] = [None] * len(blocks)
    while order:
        heartbeat(f"{teacher.spec.title} scores text")
        longest = len(blocks[order[-1]].teacher_ids)
        longest += -longest % LENGTH_STEP
        batch_size = max(1, min(len(order), limit // longest))
        batch, order = order[-batch_size:], order[:-batch_size]
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.int64)
        for r, n in enumerate(batch):
            size = len(blocks[n].teacher_ids)
            ids[r, :size] = torch.from_numpy(blocks[n].teacher_ids)
            mask[r, :size] = 1
        hidden = teacher.hidden_states(ids, mask)  # (B, L, H)
        for r, n in enumerate(batch):
            at = torch.from_numpy(blocks[n].teacher_scored - 1).to(hidden.device)
            parts[n] = hidden[r, at]
    return TeacherOutput(
        teacher=teacher,
        hidden=torch.cat([part for part in parts if part is not None]),
        alignment=concatenate([block.alignment for block in blocks]),
    )


def projection_chunk(device: torch.device) -> int:
    """Teacher positions whose probabilities are in memory at a time."""
    return 64 if device.type == "cpu" else 1024


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
    scored: list[BlockTargets] = []
    limit = 4 * _TOKENS_PER_PASS.get(teacher.device.type, 4096)
    chunk = projection_chunk(teacher.device)
    start = 0
    while start < len(blocks):
        stop, tokens = start, 0
        while stop < len(blocks) and (stop == start or tokens < limit):
            tokens += len(blocks[stop].teacher_ids)
            stop += 1
        group = blocks[start:stop]
        start = stop
        output = teacher_forward(teacher, group, heartbeat)
        parts = []
        for projected in output.project(projector, chunk):
            heartbeat(f"{teacher.spec.title} scores text")
            q_t = temper(projected.q, temperature)  # (V_s, n)
            parts.append((projected, sparsify(q_t, top_k, draws, epochs, generator)))
        columns = collect_columns(parts, len(output.alignment))
        edges = np.cumsum([0, *(len(block.alignment) for block in group)])
        nats: list[float | None] = [None] * len(group)
        if with_teacher_nats:
            sizes = [len(block.alignment.teacher_ids) for block in group]
            nats = [float(part.sum()) for part in output.token_nats(chunk).split(sizes)]
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
        most = projection_chunk(self.output.hidden.device)
        for projected in self.output.project(self.projector, min(size, most)):
            q_t = temper(projected.q, self.temperature).t().to(self.device)  # (n, V_s)
            first = int(projected.index[0])
            yield (
                slice(first, first + len(projected.index)),
                SoftTargets(
                    weight=projected.weight.to(self.device),
                    entropy=-torch.special.xlogy(q_t, q_t).sum(1),
                    dense=q_t,
                ),
            )
