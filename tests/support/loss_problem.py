"""A small problem for the loss: random hidden states, output matrix, labels and soft targets."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.sparse_targets import temper

N, H, V = 23, 6, 17
"""Positions, hidden size, vocabulary."""


class Problem:
    """Hidden states, output matrix, labels and targets, in float64."""

    def __init__(self, seed: int = 0, temperature: float = 2.0, missing: bool = True) -> None:
        """missing: positions 3 and 11 have no soft target."""
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.hidden = draw(N, H).requires_grad_()
        self.weight = draw(V, H).requires_grad_()
        self.labels = torch.randint(V, (N,), generator=generator)
        self.q_t = temper(draw(V, N).mul(2).softmax(0), temperature).t().contiguous()  # (N, V)
        self.w = torch.rand(N, generator=generator, dtype=torch.float64)
        if missing:
            self.w[3] = self.w[11] = 0.0
            self.q_t[3] = self.q_t[11] = 0.0
        self.entropy = -torch.special.xlogy(self.q_t, self.q_t).sum(1)

    def dense(self) -> SoftTargets:
        return SoftTargets(weight=self.w, entropy=self.entropy, dense=self.q_t)

    def sparse(self) -> SoftTargets:
        """The same targets as entries, one of them in two parts as draws may be."""
        ids = torch.arange(V).repeat(N, 1)
        mass = self.q_t.clone()
        mass[:, 4] /= 2
        return SoftTargets(
            weight=self.w,
            entropy=self.entropy,
            ids=torch.cat([ids, ids[:, 4:5]], dim=1),
            mass=torch.cat([mass, mass[:, 4:5]], dim=1),
        )

    def top_k(self, k: int, draws: int = 3) -> SoftTargets:
        """The k most probable tokens exactly; draws, any of the others, share the tail's mass."""
        mass, ids = self.q_t.sort(1, descending=True)
        tail = mass[:, k:].sum(1, keepdim=True)
        return SoftTargets(
            weight=self.w,
            entropy=self.entropy,
            ids=torch.cat([ids[:, :k], ids[:, -1:].repeat(1, draws)], dim=1),
            mass=torch.cat([mass[:, :k], (tail / draws).repeat(1, draws)], dim=1),
            top_k=k,
        )


def assert_equal(value: Tensor, expected: Tensor) -> None:
    """Equal but for the rounding of float64."""
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
