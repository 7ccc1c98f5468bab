"""Sparse soft targets over the student's vocabulary: top-k probabilities and draws from the tail.

Shapes: N positions, K kept entries, V_s student vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.determinism import cumsum
from engine.distill.align.blocks import TextBlock
from engine.distill.align.projection import Projected
from engine.distill.device import to_device


@dataclass
class TargetBatch:
    """Soft targets of N scored positions; `mass` sums to 1 over the entries where weight > 0.

    Attributes:
        ids: (N, K) int64 student tokens; a token may occur more than once (draws).
        mass: (N, K) float32, q_T of the top entries, tail mass / draws for each draw.
        weight: (N,) float32, w; 0 where there is no soft target.
        entropy: (N,) float32, of q_T in nats.
        top_k: the first top_k entries are exact, the others are draws.
    """

    ids: Tensor
    mass: Tensor
    weight: Tensor
    entropy: Tensor
    top_k: int

    def to(self, device: torch.device) -> TargetBatch:
        return TargetBatch(
            ids=to_device(self.ids, device),
            mass=to_device(self.mass, device),
            weight=to_device(self.weight, device),
            entropy=to_device(self.entropy, device),
            top_k=self.top_k,
        )


@dataclass(frozen=True)
class SparseTargets:
    """Sparse q_T of a chunk of n positions.

    Attributes:
        top_ids, top_mass: (n, K) most probable tokens and their q_T, in descending order.
        tail: (n,) mass of all other tokens.
        draws: (n, epochs, draws) tokens drawn from the tail.
        entropy: (n,) of q_T in nats.
    """

    top_ids: Tensor
    top_mass: Tensor
    tail: Tensor
    draws: Tensor
    entropy: Tensor


@dataclass
class BlockTargets:
    """A block and the sparse targets of its N positions, in host memory, as shards store them."""

    block: TextBlock
    weight: np.ndarray
    residual: np.ndarray
    entropy: np.ndarray
    tail: np.ndarray
    top_ids: np.ndarray
    top_mass: np.ndarray
    draws: np.ndarray
    teacher_nats: float | None = None
    """-log p of the text by the expert in its own tokens, without ends of turn; None: not kept."""


def temper(q: Tensor, temperature: float) -> Tensor:
    """q_T, proportional to q^(1/T), along the first axis; columns of zeros stay zeros."""
    if temperature == 1.0:
        return q
    powered = q.sqrt() if temperature == 2.0 else q.pow(1.0 / temperature)
    return powered.div_(powered.sum(0, keepdim=True).clamp_min(1e-30))


def sparsify(
    q_t: Tensor, top_k: int, draws: int, epochs: int, generator: torch.Generator
) -> SparseTargets:
    """Keep the top_k entries of q_T exactly, and draw from the rest in proportion to it.

    Args:
        q_t: (V_s, n) tempered distribution in columns.
        draws: draws per epoch.
        epochs: epochs with independent draws.

    The draws of an epoch are stratified (one in each of `draws` equal slices of the tail's mass),
    so that each token's expected count is draws * q_T / tail and the noise is smaller than that of
    independent draws (sparse logit sampling: arXiv 2503.16870).
    """
    rows = q_t.t().contiguous()  # (n, V_s)
    n, size = rows.shape
    k = min(top_k, size)
    top_mass, top_ids = rows.topk(k, dim=1)
    entropy = -torch.special.xlogy(rows, rows).sum(1)
    rest = rows.scatter(1, top_ids, 0.0)
    cumulative = cumsum(rest, 1, dtype=torch.float32)
    tail = cumulative[:, -1].clone()
    noise = torch.rand((n, epochs, draws), generator=generator, device="cpu").to(rows.device)
    slices = (torch.arange(draws, device=rows.device) + noise) / draws
    levels = (slices * tail[:, None, None]).reshape(n, epochs * draws)
    picked = torch.searchsorted(cumulative, levels, right=True).clamp_max(size - 1)
    # Rounding may put a draw past the last token that has mass.
    last = (rest > 0).long().mul_(torch.arange(size, device=rows.device)).amax(1, keepdim=True)
    picked = torch.minimum(picked, last)
    return SparseTargets(
        top_ids=top_ids,
        top_mass=top_mass,
        tail=tail,
        draws=picked.reshape(n, epochs, draws),
        entropy=entropy,
    )


def collect_columns(
    parts: Sequence[tuple[Projected, SparseTargets]], positions: int
) -> dict[str, np.ndarray]:
    """The chunks of a projection in the order of the text, as arrays of N = `positions` rows."""
    index = torch.cat([projected.index for projected, _ in parts]).cpu()
    order = torch.empty_like(index)
    order[index] = torch.arange(positions)
    columns = {
        "weight": [p.weight for p, _ in parts],
        "residual": [p.residual for p, _ in parts],
        "entropy": [s.entropy for _, s in parts],
        "tail": [s.tail for _, s in parts],
        "top_ids": [s.top_ids for _, s in parts],
        "top_mass": [s.top_mass for _, s in parts],
        "draws": [s.draws for _, s in parts],
    }
    return {name: torch.cat(c).cpu()[order].numpy() for name, c in columns.items()}


def to_batch(parts: Sequence[BlockTargets], epoch: int) -> TargetBatch:
    """Targets of the blocks' scored positions, one block after the other.

    The same as a shard gives for these blocks; each epoch uses its own slice of the draws.
    """
    ids, mass = [], []
    for part in parts:
        draws = part.draws[:, epoch % part.draws.shape[1]]
        each = np.repeat(part.tail[:, None] / draws.shape[1], draws.shape[1], axis=1)
        ids.append(np.concatenate([part.top_ids, draws], axis=1).astype(np.int64))
        mass.append(np.concatenate([part.top_mass, each], axis=1).astype(np.float32))
    return TargetBatch(
        ids=torch.from_numpy(np.concatenate(ids)),
        mass=torch.from_numpy(np.concatenate(mass)),
        weight=torch.from_numpy(np.concatenate([p.weight for p in parts]).astype(np.float32)),
        entropy=torch.from_numpy(np.concatenate([p.entropy for p in parts]).astype(np.float32)),
        top_k=parts[0].top_ids.shape[1],
    )
