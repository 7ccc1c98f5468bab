"""The chunked loss with the forward KL against its formula, written densely; see also
test_divergences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor

from engine.distill.align.blocks import EncodedBlock
from engine.distill.data.packing import make_batch
from engine.distill.teacher.soft_targets import ChainedTargets, SoftTargets
from engine.distill.teacher.sparse_targets import TargetBatch, sparsify, temper
from engine.distill.train.logits import chunk_positions
from engine.distill.train.losses import distillation_loss
from tests.support.loss_problem import H, N, Problem, V, assert_equal
from tests.support.toys import (
    PROSE,
    block_of,
    chat,
    dense_loss,
    project_all,
    projector_of,
    random_logits,
    tiny_llama,
)

# chunks of one position, of some that do not divide N, and all at once
CHUNKS = (1, 7, N)
ALPHAS = (0.0, 0.5, 1.0)
TEMPERATURES = (1.0, 2.0, 3.0)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("alpha", "temperature"), list(product(ALPHAS, TEMPERATURES)))
def test_loss_and_gradient_equal_the_dense_formula(kind, chunk, alpha, temperature):
    problem = Problem(1, temperature)
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        getattr(problem, kind)(),
        alpha=alpha,
        temperature=temperature,
        denominator=40.0,
        chunk_size=chunk,
    )
    expected = (
        dense_loss(
            problem.hidden,
            problem.weight,
            problem.labels,
            problem.q_t,
            problem.w,
            alpha,
            temperature,
        )
        / 40.0
    )
    assert_equal(parts.loss, expected)
    inputs = (problem.hidden, problem.weight)
    upstream = torch.tensor(-1.7, dtype=torch.float64)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(parts.loss, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        assert_equal(gradient, expected_gradient)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_without_soft_targets_the_loss_is_cross_entropy(chunk):
    problem = Problem(2)
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        None,
        alpha=0.5,
        temperature=2.0,
        denominator=N,
        chunk_size=chunk,
    )
    expected = torch.nn.functional.cross_entropy(
        problem.hidden @ problem.weight.t(), problem.labels
    )
    assert_equal(parts.loss, expected)
    assert_equal(parts.ce / N, expected.detach())
    assert float(parts.divergence) == 0.0
    assert float(parts.teacher_weight) == 0.0
    inputs = (problem.hidden, problem.weight)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(parts.loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert_equal(gradient, expected_gradient)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("temperature", [1.0, 1.7, 2.0])
def test_gradcheck_with_an_upstream_gradient(kind, temperature):
    problem = Problem(3, temperature)
    targets = getattr(problem, kind)()

    def scaled(hidden: Tensor, weight: Tensor) -> Tensor:
        parts = distillation_loss(
            hidden,
            weight,
            problem.labels,
            targets,
            alpha=0.6,
            temperature=temperature,
            denominator=11.0,
            chunk_size=7,
        )
        return 3.5 * parts.loss**2

    assert torch.autograd.gradcheck(scaled, (problem.hidden, problem.weight))


def test_the_parts_are_sums_over_positions():
    problem = Problem(4)
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        problem.dense(),
        alpha=0.5,
        temperature=2.0,
        denominator=1.0,
        chunk_size=7,
    )
    z = (problem.hidden @ problem.weight.t()).detach()
    ce = -z.log_softmax(1)[torch.arange(N), problem.labels]
    log_ratio = problem.q_t.clamp_min(1e-300).log() - (z / 2).log_softmax(1)
    kl = (problem.q_t * log_ratio).sum(1)
    assert_equal(parts.ce, ce.sum())
    assert_equal(parts.divergence, (problem.w * kl).sum())
    assert_equal(parts.teacher_weight, problem.w.sum())


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_student_that_equals_its_target_has_no_kl_and_no_gradient(temperature):
    problem = Problem(5, missing=False)
    z = (problem.hidden @ problem.weight.t()).detach()
    q_t = (z / temperature).softmax(1)
    soft = SoftTargets(
        weight=torch.ones(N, dtype=torch.float64),
        entropy=-torch.special.xlogy(q_t, q_t).sum(1),
        dense=q_t,
    )
    parts = distillation_loss(
        problem.hidden,
        problem.weight,
        problem.labels,
        soft,
        alpha=1.0,
        temperature=temperature,
        denominator=N,
        chunk_size=7,
    )
    assert float(parts.divergence) == pytest.approx(0.0, abs=1e-12)
    assert float(parts.loss.detach()) == pytest.approx(0.0, abs=1e-12)
    for gradient in torch.autograd.grad(parts.loss, (problem.hidden, problem.weight)):
        assert float(gradient.abs().max()) < 1e-14


@pytest.mark.parametrize("kind", ["dense", "sparse", "sparse_without_tail"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_identical_tokenizers_give_plain_distillation(trained, kind, temperature):
    """Through alignment, projection, temperature and targets: KL(softmax(t/T)) + CE as always."""
    reader = trained["byte_level"]
    block = block_of(chat("Tell me of rivers.", PROSE), reader, reader)
    size, count = reader.vocabulary.size, len(block.student_scored)
    logits = random_logits(size, count, 1)
    projected = project_all(projector_of(reader, reader), logits, block)
    q_t = temper(projected.q.clone(), temperature)
    if kind == "dense":
        soft = SoftTargets(
            weight=projected.weight,
            entropy=-torch.special.xlogy(q_t, q_t).sum(0),
            dense=q_t.t().contiguous(),
        )
    else:
        kept = sparsify(q_t, size, 4, 1, torch.Generator().manual_seed(0))
        draws = kept.draws[:, 0]
        each = (kept.tail[:, None] / 4).expand(-1, 4)
        ids, mass = kept.top_ids, kept.top_mass
        if kind == "sparse":
            ids, mass = torch.cat([ids, draws], 1), torch.cat([mass, each], 1)
        soft = SoftTargets(projected.weight, kept.entropy, ids, mass)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(count, 16, generator=generator).requires_grad_()
    weight = torch.randn(size, 16, generator=generator).requires_grad_()
    labels = torch.from_numpy(block.student_ids[block.student_scored])
    parts = distillation_loss(
        hidden,
        weight,
        labels,
        soft,
        alpha=0.5,
        temperature=temperature,
        denominator=count,
        chunk_size=16,
    )
    plain = (logits.double() / temperature).softmax(0).t()
    h, w = hidden.double(), weight.double()
    expected = dense_loss(
        h, w, labels, plain, torch.ones(count, dtype=torch.float64), 0.5, temperature
    )
    torch.testing.assert_close(parts.loss.double(), expected / count, rtol=1e-5, atol=1e-6)
    inputs = (hidden, weight)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(parts.loss, inputs),
        torch.autograd.grad(expected / count, inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_permuting_the_students_ids_permutes_the_gradient(kind):
    problem = Problem(6)
    order = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    settings = {"alpha": 0.5, "temperature": 2.0, "denominator": N, "chunk_size": 7}

    def gradients(weight: Tensor, labels: Tensor, soft: SoftTargets) -> list[Tensor]:
        leaf = weight.detach().requires_grad_()
        parts = distillation_loss(problem.hidden, leaf, labels, soft, **settings)
        return [parts.loss.detach(), *torch.autograd.grad(parts.loss, (problem.hidden, leaf))]

    plain = getattr(problem, kind)()
    # token v of the one is token order[v] of the other
    inverse = torch.argsort(order)
    moved = SoftTargets(
        weight=plain.weight,
        entropy=plain.entropy,
        ids=None if plain.ids is None else order[plain.ids],
        mass=plain.mass,
        dense=None if plain.dense is None else plain.dense[:, inverse],
    )
    one = gradients(problem.weight, problem.labels, plain)
    two = gradients(problem.weight[inverse], order[problem.labels], moved)
    assert_equal(two[0], one[0])
    assert_equal(two[1], one[1])
    assert_equal(two[2][order], one[2])


def test_a_position_without_a_soft_target_is_plain_cross_entropy_with_its_full_gradient():
    problem = Problem(7)
    settings = {"alpha": 0.5, "temperature": 2.0, "denominator": 1.0}
    gradients = []
    for soft in (problem.dense(), None):
        parts = distillation_loss(problem.hidden, problem.weight, problem.labels, soft, **settings)
        gradients.append(torch.autograd.grad(parts.loss, problem.hidden)[0])
    assert_equal(gradients[0][3], gradients[1][3])
    assert_equal(gradients[0][11], gradients[1][11])
    assert not torch.allclose(gradients[0][4], gradients[1][4])


class Backwards:
    """A source that gives its chunks from the end, as online targets come."""

    def __init__(self, soft: SoftTargets) -> None:
        self.soft = soft

    def chunks(self, size: int) -> Iterator[tuple[slice, SoftTargets]]:
        return reversed(list(self.soft.chunks(size)))


def test_the_order_of_chunks_and_several_sources_change_nothing():
    problem = Problem(8)
    whole = problem.dense()

    def cut(lo: int, hi: int) -> SoftTargets:
        return SoftTargets(
            weight=whole.weight[lo:hi], entropy=whole.entropy[lo:hi], dense=whole.dense[lo:hi]
        )

    chained = ChainedTargets([(9, Backwards(cut(0, 9))), (14, cut(9, N))])
    results = []
    for soft in (whole, Backwards(whole), chained):
        parts = distillation_loss(
            problem.hidden,
            problem.weight,
            problem.labels,
            soft,
            alpha=0.5,
            temperature=2.0,
            denominator=N,
            chunk_size=4,
        )
        results.append((parts.loss, *torch.autograd.grad(parts.loss, problem.hidden)))
    for loss, gradient in results[1:]:
        assert_equal(loss, results[0][0])
        assert_equal(gradient, results[0][1])


def test_bf16_products_stay_near_the_exact_loss():
    problem = Problem(10)
    hidden = problem.hidden.detach().float().requires_grad_()
    weight = problem.weight.detach().float().requires_grad_()
    soft = problem.dense()
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        parts = distillation_loss(
            hidden,
            weight,
            problem.labels,
            soft,
            alpha=0.5,
            temperature=2.0,
            denominator=N,
            compute_dtype=dtype,
        )
        grads.append((parts.loss.detach(), *torch.autograd.grad(parts.loss, (hidden, weight))))
    assert grads[1][1].dtype == grads[1][2].dtype == torch.float32
    assert float(grads[1][0]) == pytest.approx(float(grads[0][0]), rel=0.02)
    for exact, rounded in zip(grads[0][1:], grads[1][1:], strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.03


def test_logits_exist_for_one_chunk_of_positions_at_a_time(monkeypatch):
    count, vocab_size, chunk = 1000, 300, 128
    shapes: list[tuple[int, ...]] = []
    original = torch.mm

    def recorded_mm(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        shapes.append((len(a), b.shape[1]))
        return original(a, b, out=out)

    monkeypatch.setattr(torch, "mm", recorded_mm)
    parts = distillation_loss(
        torch.randn(count, H, requires_grad=True),
        torch.randn(vocab_size, H, requires_grad=True),
        torch.zeros(count, dtype=torch.int64),
        None,
        alpha=0.5,
        temperature=2.0,
        denominator=count,
        chunk_size=chunk,
    )
    parts.loss.backward()
    logits = [shape[0] for shape in shapes if shape[1] == vocab_size]
    assert len(logits) == 8
    assert max(logits) == chunk
    assert chunk_positions(32000, torch.device("cpu")) * 32000 < 1 << 24


def test_the_output_matrix_gradient_is_the_same_in_blocks_of_the_vocabulary(monkeypatch):
    problem = Problem(13)
    inputs = (problem.hidden, problem.weight)
    gradients = []
    for block in (V, 5):
        monkeypatch.setattr("engine.distill.train.losses._VOCABULARY_BLOCK", block)
        parts = distillation_loss(
            problem.hidden,
            problem.weight,
            problem.labels,
            problem.sparse(),
            alpha=0.5,
            temperature=2.0,
            denominator=N,
        )
        gradients.append(torch.autograd.grad(parts.loss, inputs))
    for whole, blocks in zip(*gradients, strict=True):
        assert_equal(blocks, whole)


def test_without_gradients_nothing_is_saved_for_backward():
    problem = Problem(12)
    parts = distillation_loss(
        problem.hidden.detach(),
        problem.weight.detach(),
        problem.labels,
        problem.dense(),
        alpha=0.5,
        temperature=2.0,
        denominator=N,
    )
    assert not parts.loss.requires_grad
    assert torch.isfinite(parts.loss)


# --- Draws from the tail ---------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cached_targets_are_unbiased_and_their_noise_is_bounded(temperature):
    """With m draws of a tail of mass r the target's error has E|q' - q|^2 <= r^2 / m (that of
    independent draws; stratified ones have less). d loss / d z = alpha w T (p_T - q) / D, so
    E|g' - g|^2 <= sum over positions of (alpha w T r / D)^2 / m."""
    count, size, top_k, m, seeds, alpha = 12, 200, 8, 4, 300, 0.5
    generator = torch.Generator().manual_seed(1)
    q_t = temper(torch.randn(size, count, generator=generator).mul(1.5).softmax(0), temperature)
    z = torch.randn(count, size, generator=generator, dtype=torch.float64)
    eye = torch.eye(size, dtype=torch.float64)  # logits are the hidden states themselves
    labels = torch.randint(size, (count,), generator=generator)
    w = torch.rand(count, generator=generator)
    entropy = -torch.special.xlogy(q_t, q_t).sum(0)

    def step(soft: SoftTargets) -> tuple[Tensor, Tensor]:
        leaf = z.clone().requires_grad_()
        parts = distillation_loss(
            leaf,
            eye,
            labels,
            soft,
            alpha=alpha,
            temperature=temperature,
            denominator=count,
        )
        return parts.loss.detach(), torch.autograd.grad(parts.loss, leaf)[0]

    loss, gradient = step(SoftTargets(w, entropy, dense=q_t.t()))
    losses, sums, squares = [], torch.zeros_like(gradient), 0.0
    tail = torch.zeros(count)
    for seed in range(seeds):
        kept = sparsify(q_t, top_k, m, 1, torch.Generator().manual_seed(seed))
        tail = kept.tail
        each = (kept.tail[:, None] / m).expand(-1, m)
        cached = TargetBatch(
            ids=torch.cat([kept.top_ids, kept.draws[:, 0]], 1),
            mass=torch.cat([kept.top_mass, each], 1),
            weight=w,
            entropy=kept.entropy,
            top_k=top_k,
        )
        one_loss, one_gradient = step(SoftTargets.of(cached))
        losses.append(one_loss)
        sums += one_gradient
        squares += float((one_gradient - gradient).square().sum())
    bound = float(((alpha * w * temperature * tail / count) ** 2 / m).sum())
    assert tail.min() > 0.1  # there is a tail to be noisy
    assert 0 < squares / seeds <= bound
    # the mean's squared error is the variance over the number of seeds
    assert float((sums / seeds - gradient).square().sum()) <= 4 * bound / seeds
    spread = float(torch.stack(losses).std()) / math.sqrt(seeds)
    assert float(torch.stack(losses).mean()) == pytest.approx(float(loss), abs=4 * spread)


# --- With a model ----------------------------------------------------------

MODEL_VOCAB = 40


def model_rows(seed: int, lengths: list[int]) -> list[EncodedBlock]:
    """Blocks of random tokens, the second half scored."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(MODEL_VOCAB, (length,), generator=generator).numpy()
        scored = torch.arange(max(1, length // 2), length).numpy()
        is_end = scored == length - 1
        rows.append(EncodedBlock(ids=ids, scored=scored, is_end=is_end, text_bytes=length))
    return rows


def targets_of(rows: list[EncodedBlock], seed: int) -> list[SoftTargets]:
    found = []
    for n, row in enumerate(rows):
        q = random_logits(MODEL_VOCAB, len(row.scored), seed + n).softmax(0).t().contiguous()
        weight = torch.rand(len(row.scored), generator=torch.Generator().manual_seed(seed + n))
        found.append(SoftTargets(weight, -torch.special.xlogy(q, q).sum(1), dense=q))
    return found


def accumulate(batches: list[list[list[int]]], rows: list[EncodedBlock], soft: list[SoftTargets]):
    """Loss and gradients of an optimizer step whose micro-batches are packed rows of blocks."""
    model = tiny_llama(MODEL_VOCAB, seed=3)
    denominator = sum(len(row.scored) for row in rows)
    total = 0.0
    for micro in batches:
        batch = make_batch([[rows[n] for n in packed] for packed in micro], torch.device("cpu"))
        hidden = model.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        order = [n for packed in micro for n in packed]
        parts = distillation_loss(
            hidden.flatten(0, 1)[batch.gather],
            model.lm_head.weight,
            batch.labels,
            ChainedTargets([(len(soft[n].weight), soft[n]) for n in order]),
            alpha=0.5,
            temperature=2.0,
            denominator=denominator,
            chunk_size=16,
        )
        parts.loss.backward()
        total += float(parts.loss.detach())
    return total, {name: p.grad for name, p in model.named_parameters()}


LENGTHS = [5, 31, 2, 17, 24, 9, 3, 12]


@pytest.mark.parametrize(
    "batches",
    [
        [[[n]] for n in range(8)],
        [[[0], [1], [2]], [[3], [4], [5], [6], [7]]],
        [[[0, 1, 2, 3], [4, 5, 6, 7]]],
        [[list(range(8))]],
        [[[7, 2, 4], [1]], [[0, 6], [5], [3]]],
    ],
    ids=["8 of 1", "2 of 3 and 5", "2 packed rows", "1 packed row", "packed out of order"],
)
def test_micro_batches_packing_and_padding_change_nothing(batches):
    """Against one batch of eight rows of unequal lengths."""
    rows = model_rows(1, LENGTHS)
    soft = targets_of(rows, 7)
    loss, gradients = accumulate([[[n] for n in range(8)]], rows, soft)
    other_loss, other = accumulate(batches, rows, soft)
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)
