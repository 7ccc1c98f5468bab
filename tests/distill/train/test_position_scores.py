"""Evaluation of positions against the training loss."""

from __future__ import annotations

import pytest
import torch

from engine.distill.train.losses import distillation_loss
from engine.distill.train.position_scores import score_positions
from tests.support.loss_problem import N, Problem


@pytest.mark.parametrize("kind", ["dense", "sparse", "none"])
def test_scores_sum_to_the_parts_of_the_loss(kind):
    problem = Problem(9)
    soft = None if kind == "none" else getattr(problem, kind)()
    ce, kl, best = torch.zeros(N), torch.zeros(N), torch.zeros(N, dtype=torch.int64)
    with torch.no_grad():
        hidden, weight = problem.hidden.float(), problem.weight.float()
        for part in score_positions(
            hidden, weight, problem.labels, soft, temperature=2.0, chunk_size=7
        ):
            ce[part.span], kl[part.span], best[part.span] = part.ce, part.kl, part.best
        parts = distillation_loss(
            hidden,
            weight,
            problem.labels,
            soft,
            alpha=0.5,
            temperature=2.0,
            denominator=N,
            chunk_size=7,
        )
    assert float(ce.sum()) == pytest.approx(float(parts.ce), rel=1e-5)
    assert float((kl * problem.w.float()).sum()) == pytest.approx(float(parts.divergence), rel=1e-4)
    assert torch.equal(best, (hidden @ weight.t()).argmax(1))
    assert (kl >= -1e-6).all()
