"""Sparse targets: top-k entries, draws from the tail, and temperature."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distill.teacher.sparse_targets import sparsify, temper
from tests.support.toys import random_logits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 3.0])
def test_temper_is_softmax_at_that_temperature(temperature):
    logits = random_logits(50, 7, 1)
    q = logits.softmax(0)
    torch.testing.assert_close(
        temper(q.clone(), temperature), (logits / temperature).softmax(0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0])
def test_tempered_columns_of_zeros_stay_zeros(temperature):
    q = torch.zeros(5, 2)
    q[:, 1] = 0.2
    tempered = temper(q, temperature)
    assert (tempered[:, 0] == 0).all()
    assert float(tempered[:, 1].sum()) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 60),
    top_k=st.integers(1, 70),
    draws=st.integers(1, 9),
    epochs=st.integers(1, 3),
    scale=st.floats(0.0, 20.0),
    seed=st.integers(0, 1 << 16),
)
def test_no_mass_is_lost_with_the_tail(size, top_k, draws, epochs, scale, seed):
    q_t = random_logits(size, 5, seed, scale).softmax(0)
    kept = sparsify(q_t, top_k, draws, epochs, generator(seed))
    k = min(top_k, size)
    assert kept.top_ids.shape == kept.top_mass.shape == (5, k)
    assert kept.draws.shape == (5, epochs, draws)
    torch.testing.assert_close(kept.top_mass.sum(1) + kept.tail, torch.ones(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.top_mass, q_t.t().gather(1, kept.top_ids))
    assert (kept.top_mass[:, :-1] >= kept.top_mass[:, 1:]).all()
    if k < size:
        least = kept.top_mass[:, -1]
        rest = q_t.t().scatter(1, kept.top_ids, 0.0)
        assert (rest.amax(1) <= least).all()
        # a draw is a token of the rest that has mass
        picked = rest.gather(1, kept.draws.reshape(5, -1))
        assert (picked[kept.tail > 0] > 0).all()
    entropy = -torch.special.xlogy(q_t, q_t).sum(0)
    torch.testing.assert_close(kept.entropy, entropy, atol=1e-5, rtol=1e-5)


def test_draws_follow_the_distribution_of_the_tail():
    q_t = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])[:, None]
    kept = sparsify(q_t, 1, 8, 5000, generator())
    counts = torch.bincount(kept.draws.flatten(), minlength=5).double()
    share = counts / counts.sum()
    # 40,000 draws: four standard deviations of an independent draw's share
    expected = torch.tensor([0.0, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 40000).sqrt()).all()


def test_each_epoch_has_its_own_draws_and_a_seed_repeats_them():
    q_t = random_logits(400, 6, 0, 1.0).softmax(0)
    one = sparsify(q_t, 4, 8, 3, generator(5))
    two = sparsify(q_t, 4, 8, 3, generator(5))
    other = sparsify(q_t, 4, 8, 3, generator(6))
    assert torch.equal(one.draws, two.draws)
    assert not torch.equal(one.draws, other.draws)
    assert not torch.equal(one.draws[:, 0], one.draws[:, 1])
