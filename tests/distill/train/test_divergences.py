"""Each divergence against its formula, written naively over all tokens with autograd."""

from __future__ import annotations

import math
from itertools import product
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from engine.config import LossConfig
from engine.distill.teacher.soft_targets import OnPolicyTargets, SoftTargets
from engine.distill.train.divergences import DIVERGENCES, JSD_BETA, MIN_TEACHER_PROBABILITY
from engine.distill.train.losses import distillation_loss
from tests.support.loss_problem import N, Problem, V, assert_equal

NAMES = tuple(DIVERGENCES)
EVENT_NAMES = ("reverse_kl", "jsd")
"""Those that treat all tokens outside the top k as one event."""


def naive(name: str, q: Tensor, p: Tensor) -> Tensor:
    """(N,) D(q, p) of distributions (N, V); 0 where q is all zeros."""
    present = q.sum(1) > 0
    q = torch.where(present[:, None], q, p.detach())
    if name == "forward_kl":
        value = torch.special.xlogy(q, q / p).sum(1)
    elif name == "reverse_kl":
        value = (p * (p / q).log()).sum(1)
    else:
        m = JSD_BETA * q + (1 - JSD_BETA) * p
        teacher_part = torch.special.xlogy(q, q / m).sum(1)
        value = JSD_BETA * teacher_part + (1 - JSD_BETA) * (p * (p / m).log()).sum(1)
    return torch.where(present, value, 0.0)


def naive_loss(problem: Problem, name: str, alpha: float, temperature: float) -> Tensor:
    """The sum over positions, by the formula."""
    z = problem.hidden @ problem.weight.t()
    ce = -z.log_softmax(1)[torch.arange(N), problem.labels]
    divergence = naive(name, problem.q_t, (z / temperature).softmax(1))
    share = alpha * problem.w
    return (share * temperature**2 * divergence + (1 - share) * ce).sum()


def student(problem: Problem, temperature: float) -> Tensor:
    """(N, V) p_T."""
    return (problem.hidden @ problem.weight.t() / temperature).softmax(1).detach()


def all_kept(problem: Problem) -> SoftTargets:
    return problem.top_k(V)


TARGETS = {"dense": Problem.dense, "all kept": all_kept}


def test_the_config_names_every_divergence():
    assert set(get_args(get_type_hints(LossConfig)["divergence"])) == set(DIVERGENCES)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("chunk", [1, 7, N])
@pytest.mark.parametrize(("alpha", "temperature"), list(product((0.5, 1.0), (1.0, 2.0, 3.0))))
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_equal_the_formula_for_every_chunk_size(
    name, alpha, temperature, chunk, kind
):
    problem = Problem(1, temperature)
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        TARGETS[kind](problem),
        alpha=alpha,
        temperature=temperature,
        denominator=40.0,
        divergence=name,
        chunk_size=chunk,
    )
    expected = naive_loss(problem, name, alpha, temperature) / 40.0
    assert_equal(parts.loss, expected)
    value = naive(name, problem.q_t, student(problem, temperature))
    assert_equal(parts.divergence, (problem.w * value).sum())
    inputs = (problem.hidden, problem.weight)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(parts.loss, inputs),
        torch.autograd.grad(expected, inputs),
        strict=True,
    ):
        assert_equal(gradient, expected_gradient)


@pytest.mark.parametrize("kind", ["dense", "top 4"])
@pytest.mark.parametrize(("alpha", "temperature"), list(product((0.5, 1.0), (1.0, 2.0))))
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, alpha, temperature, kind):
    problem = Problem(3, temperature)
    targets = problem.dense() if kind == "dense" else problem.top_k(4)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        parts = distillation_loss(
            hidden,
            weight,
            problem.labels,
            targets,
            alpha=alpha,
            temperature=temperature,
            denominator=11.0,
            divergence=name,
            chunk_size=7,
        )
        return 3.5 * parts.loss**2

    assert torch.autograd.gradcheck(loss, (problem.hidden, problem.weight))


def divergence_of(problem: Problem, name: str, targets: SoftTargets, temperature: float) -> Tensor:
    """(N,) values, one position at a time."""
    values = [
        distillation_loss(
            problem.hidden[n : n + 1].detach(),
            problem.weight.detach(),
            problem.labels[n : n + 1],
            one,
            alpha=1.0,
            temperature=temperature,
            denominator=1.0,
            divergence=name,
        ).divergence
        for n, (_, one) in enumerate(targets.chunks(1))
    ]
    return torch.stack(values)


@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_reverse_kl_of_the_top_k_is_lower_by_the_divergence_within_the_rest(temperature, k):
    """The chain rule: what is lost is p_rest KL(p(. | rest) || q(. | rest))."""
    problem = Problem(4, temperature, missing=False)
    problem.w.fill_(1.0)
    p, q = student(problem, temperature), problem.q_t
    rest = q.argsort(1, descending=True)[:, k:]
    p_rest, q_rest = p.gather(1, rest), q.gather(1, rest)
    p_mass = p_rest.sum(1, keepdim=True)
    within = naive("reverse_kl", q_rest / q_rest.sum(1, keepdim=True), p_rest / p_mass)
    sparse = divergence_of(problem, "reverse_kl", problem.top_k(k), temperature)
    assert_equal(sparse, naive("reverse_kl", q, p) - p_mass[:, 0] * within)
    assert (sparse >= 0).all()


@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_jsd_of_the_top_k_is_lower_by_at_most_log_2_of_the_mass_of_the_rest(temperature, k):
    problem = Problem(5, temperature, missing=False)
    problem.w.fill_(1.0)
    p, q = student(problem, temperature), problem.q_t
    rest = q.argsort(1, descending=True)[:, k:]
    mass = (JSD_BETA * q + (1 - JSD_BETA) * p).gather(1, rest).sum(1)
    lost = naive("jsd", q, p) - divergence_of(problem, "jsd", problem.top_k(k), temperature)
    assert (lost >= -1e-12).all()
    assert (lost <= mass * math.log(2)).all()
    assert float(lost.max()) > 1e-3  # the rest does matter here


@pytest.mark.parametrize("name", EVENT_NAMES)
def test_which_tokens_were_drawn_changes_nothing(name):
    problem = Problem(6, missing=False)
    one = problem.top_k(4)
    assert one.ids is not None
    ids = one.ids.clone()
    ids[:, 4:] = problem.q_t.argsort(1, descending=True)[:, 4:5]
    other = SoftTargets(one.weight, one.entropy, ids, one.mass, top_k=4)
    assert_equal(divergence_of(problem, name, other, 2.0), divergence_of(problem, name, one, 2.0))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("kind", ["dense", "top 4"])
@pytest.mark.parametrize("name", NAMES)
def test_a_student_that_equals_its_teacher_has_no_divergence(name, kind, temperature):
    problem = Problem(7, missing=False)
    problem.q_t = student(problem, temperature)
    problem.entropy = -torch.special.xlogy(problem.q_t, problem.q_t).sum(1)
    if kind == "top 4" and name == "forward_kl":
        pytest.skip("its draws are right only in the mean")
    # OnPolicyTargets leave the cross-entropy out
    targets = OnPolicyTargets(problem.dense() if kind == "dense" else problem.top_k(4))
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        targets,
        alpha=1.0,
        temperature=temperature,
        denominator=N,
        divergence=name,
    )
    # the floor of q is felt where the student is below it as well
    allowed = N * V * MIN_TEACHER_PROBABILITY if name == "reverse_kl" else 1e-12
    assert float(parts.divergence) == pytest.approx(0.0, abs=allowed)
    for gradient in torch.autograd.grad(parts.loss, (problem.hidden, problem.weight)):
        assert float(gradient.abs().max()) < allowed


@pytest.mark.parametrize("kind", ["dense", "top 4", "all kept"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_finite_where_the_teacher_excludes_tokens_that_the_student_prefers(
    name, kind, dtype
):
    problem = Problem(8, missing=False)
    hidden = (problem.hidden * 200).detach().to(dtype).requires_grad_()  # probabilities of 0 and 1
    problem.q_t = torch.zeros_like(problem.q_t)
    problem.q_t[:, :2] = 0.5
    k = {"dense": None, "top 4": 4, "all kept": V}[kind]
    targets = problem.dense() if k is None else problem.top_k(k)
    parts = distillation_loss(
        hidden,
        problem.weight.detach().to(dtype),
        problem.labels,
        targets,
        alpha=1.0,
        temperature=1.0,
        denominator=N,
        divergence=name,
    )
    assert math.isfinite(float(parts.loss.detach()))
    assert torch.isfinite(torch.autograd.grad(parts.loss, hidden)[0]).all()
    if name == "reverse_kl":
        assert float(parts.divergence) <= -N * math.log(MIN_TEACHER_PROBABILITY)
    if name == "jsd":
        assert float(parts.divergence) <= N * math.log(2) * 1.0001


@pytest.mark.parametrize("name", EVENT_NAMES)
@pytest.mark.parametrize("kind", ["dense", "top 4"])
def test_memory_of_a_chunk_does_not_grow_with_the_number_of_positions(name, kind, monkeypatch):
    """Rows of logits that exist at a time are those of one chunk."""
    rows: list[int] = []
    original = torch.mm

    def recorded_mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        rows.append(len(out))
        return original(a, b, out=out)

    monkeypatch.setattr(torch, "mm", recorded_mm)
    problem = Problem(9)
    distillation_loss(
        problem.hidden.repeat(20, 1),
        problem.weight,
        problem.labels.repeat(20),
        _repeated(problem.dense() if kind == "dense" else problem.top_k(4), 20),
        alpha=0.5,
        temperature=2.0,
        denominator=N,
        divergence=name,
        chunk_size=64,
    )
    assert len(rows) == -(-20 * N // 64)
    assert max(rows) == 64


def _repeated(soft: SoftTargets, times: int) -> SoftTargets:
    repeat = lambda t: None if t is None else t.repeat(times, 1)  # noqa: E731
    return SoftTargets(
        weight=soft.weight.repeat(times),
        entropy=soft.entropy.repeat(times),
        ids=repeat(soft.ids),
        mass=repeat(soft.mass),
        dense=repeat(soft.dense),
        top_k=soft.top_k,
    )
