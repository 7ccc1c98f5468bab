"""Cross-entropy, KL and the most probable token of held-out positions, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.distill.teacher.soft_targets import SoftSource
from engine.distill.train.logits import chunk_positions, pad_rows, target_chunks


@dataclass(frozen=True)
class PositionScores:
    """Scores of the positions in `span`, (n,) tensors on the CPU."""

    span: slice
    ce: Tensor
    kl: Tensor
    """KL(q_T || p_T) in nats; 0 where there is no soft target."""
    best: Tensor
    """The student's most probable token."""


@torch.no_grad()
def score_positions(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    targets: SoftSource | None,
    *,
    temperature: float,
    chunk_size: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> Iterator[PositionScores]:
    """Scores of N positions, in chunks; shapes as in `losses.distillation_loss`."""
    dtype = compute_dtype or hidden.dtype
    h, w = hidden.to(dtype), weight.to(dtype)
    chunk = chunk_positions(weight.shape[0], hidden.device, chunk_size)
    for span, soft in target_chunks(targets, len(h), chunk):
        logits = (pad_rows(h[span]) @ w.t())[: span.stop - span.start].float()  # (n, V)
        best = logits.argmax(1)
        log_p = logits.log_softmax(1)
        ce = -log_p.gather(1, labels[span, None])[:, 0]
        kl = torch.zeros_like(ce)
        if soft is not None:
            log_p_t = log_p if temperature == 1.0 else (logits / temperature).log_softmax(1)
            if soft.dense is not None:
                expected = (soft.dense * log_p_t).sum(1)
            else:
                assert soft.ids is not None and soft.mass is not None
                expected = (soft.mass * log_p_t.gather(1, soft.ids)).sum(1)
            kl = torch.where(soft.weight > 0, -soft.entropy - expected, 0.0)
        yield PositionScores(span=span, ce=ce.cpu(), kl=kl.cpu(), best=best.cpu())
