"""Run a loaded teacher over text blocks and project its next-token distributions into the student's
vocabulary.

It does not own the projection's rules nor the shards' format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.distill.align.blocks import LENGTH_STEP, ChatEncoder, TextBlock
from engine.distill.align.projection import Alignment, Projected, Projector, concatenate
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.targets import (
    BlockTargets,
    collect,
    sparsify,
    temper,
)
from engine.distill.teacher.teacher import Teacher
from engine.text.examples import Message

_TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


def teacher_encoder(teacher: Teacher) -> ChatEncoder:
    """How the expert reads text."""

    def render(chat: list[dict[str, str]]) -> str:
        return teacher.render([Message(**message) for message in chat])  # type: ignore[arg-type]

    rows = teacher.head[0].shape[0]
    return ChatEncoder(teacher.tokenizer, render, teacher.end_token_ids, rows)


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
    def own_nats(self, chunk: int) -> Tensor:
        """(M,) -log p of the expert's own token at each scored position; 0 at ends of turn."""
        ids = torch.from_numpy(self.alignment.teacher_ids)
        nats = torch.zeros(len(ids), dtype=torch.float64)
        for first in range(0, len(ids), chunk):
            part = ids[first : first + chunk]
            z = self.logits(first, first + len(part))
            at = part.clamp_min(0).to(z.device)
            own = z.logsumexp(0) - z.gather(0, at[None])[0]
            nats[first : first + len(part)] = torch.where(part >= 0, own.double().cpu(), 0.0)
        return nats

    def project(self, projector: Projector, chunk: int) -> Iterator[Projected]:
        with torch.no_grad():
            yield from projector.project(self.logits, self.alignment, chunk)


@torch.no_grad()
def teacher_forward(
    teacher: Teacher, blocks: Sequence[TextBlock], beat: Callable[[str], None] = lambda _: None
) -> TeacherOutput:
    """Runs the expert over the blocks, in passes of blocks of like length; `beat` before each."""
    limit = _TOKENS_PER_PASS.get(teacher.device.type, 4096)
    order = sorted(range(len(blocks)), key=lambda n: len(blocks[n].teacher_ids))
    parts: list[Tensor | None] = [None] * len(blocks)
    while order:
        beat(f"{teacher.spec.title} scores text")
        longest = len(blocks[order[-1]].teacher_ids)
        longest += -longest % LENGTH_STEP
        take = max(1, min(len(order), limit // longest))
        batch, order = order[-take:], order[:-take]
        ids = torch.zeros(len(batch), longest, dtype=torch.int64)
        mask = torch.zeros(len(batch), longest, dtype=torch.int64)
        for r, n in enumerate(batch):
            size = len(blocks[n].teacher_ids)
            ids[r, :size] = torch.from_numpy(blocks[n].teacher_ids)
            mask[r, :size] = 1
        hidden = teacher.hidden(ids, mask)
        for r, n in enumerate(batch):
            at = torch.from_numpy(blocks[n].teacher_scored - 1).to(hidden.device)
            parts[n] = hidden[r, at]
    return TeacherOutput(
        teacher,
        torch.cat([part for part in parts if part is not None]),
        concatenate([block.alignment for block in blocks]),
    )


def projection_chunk(device: torch.device) -> int:
    """Teacher positions whose probabilities exist at a time."""
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
    beat: Callable[[str], None],
    own_nats: bool = False,
) -> list[BlockTargets]:
    """Sparse targets of the blocks, in their order.

    own_nats: keep besides how well the expert itself predicts each text, which takes its head's
    products once more.
    """
    scored: list[BlockTargets] = []
    limit = 4 * _TOKENS_PER_PASS.get(teacher.device.type, 4096)
    start = 0
    while start < len(blocks):
        stop, tokens = start, 0
        while stop < len(blocks) and (stop == start or tokens < limit):
            tokens += len(blocks[stop].teacher_ids)
            stop += 1
        group = blocks[start:stop]
        start = stop
        output = teacher_forward(teacher, group, beat)
        parts = []
        for projected in output.project(projector, projection_chunk(teacher.device)):
            beat(f"{teacher.spec.title} scores text")
            q_t = temper(projected.q, temperature)
            parts.append((projected, sparsify(q_t, top_k, draws, epochs, generator)))
        columns = collect(parts, len(output.alignment))
        edges = np.cumsum([0, *(len(block.alignment) for block in group)])
        nats: list[float | None] = [None] * len(group)
        if own_nats:
            sizes = [len(block.alignment.teacher_ids) for block in group]
            own = output.own_nats(projection_chunk(teacher.device))
            nats = [float(part.sum()) for part in own.split(sizes)]
        for n, block in enumerate(group):
            cut: dict[str, Any] = {
                name: array[edges[n] : edges[n + 1]] for name, array in columns.items()
            }
            scored.append(BlockTargets(block=block, teacher_nats=nats[n], **cut))
    return scored


@dataclass(frozen=True)
class OnlineTargets:
    """Dense targets, projected while they are asked for."""

    output: TeacherOutput
    projector: Projector
    temperature: float
    device: torch.device
    """The student's, where the targets are wanted."""

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        """About `size` teacher positions at a time, from the end of the text to its start."""
        most = projection_chunk(self.output.hidden.device)
        for projected in self.output.project(self.projector, min(size, most)):
            q_t = temper(projected.q, self.temperature).t().to(self.device)
            first = int(projected.index[0])
            yield (
                slice(first, first + len(projected.index)),
                SoftTargets(
                    weight=projected.weight.to(self.device),
                    entropy=-torch.special.xlogy(q_t, q_t).sum(1),
                    dense=q_t,
                ),
            )
