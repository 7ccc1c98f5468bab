"""Scoring text with an expert: hidden states at the scored positions, cached and online targets."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch

from engine.distill.align.blocks import TextBlock
from engine.distill.align.projection import Projector
from engine.distill.data.sources import CachedSource, OnlineSource
from engine.distill.teacher import scoring
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import score_blocks, teacher_encoder, teacher_forward
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.sparse_targets import BlockTargets, temper
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.losses import distillation_loss
from tests.support.tiny_expert import SPEC, make_expert
from tests.support.toys import PROSE, block_of, chat, document, project_all, projector_of

TEMPERATURE = 2.0
KEY = ShardKey(
    corpus="",
    expert="tiny",
    expert_digest="",
    teacher_tokenizer="",
    student_tokenizer="",
    temperature=TEMPERATURE,
    top_k=8,
    draws=4,
    epochs=2,
    min_mass=0.05,
    seed=0,
    precision="float32",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"), context=512)
    return load_teacher(folder, SPEC, dtype=torch.float32)


@pytest.fixture(scope="module")
def blocks(trained, teacher) -> list[TextBlock]:
    """Five blocks of unequal lengths, with several turns, a document and a one-byte answer."""
    examples = [
        chat("Tell me.", PROSE[:120]),
        chat("One byte.", "x"),
        document(PROSE[100:300]),
        chat("One?", "Rivers run.", "Two?", "To the sea.", complete=False),
        document("é🙂\r\n"),
    ]
    encoder = teacher_encoder(teacher)
    return [block_of(example, trained["prepend"], encoder) for example in examples]


@pytest.fixture(scope="module")
def projector(trained, teacher) -> Projector:
    return projector_of(teacher_encoder(teacher), trained["prepend"])


def logits_of(teacher: Teacher, block: TextBlock) -> torch.Tensor:
    """(V_t, M) logits that predict the scored tokens, by the plain model on this block alone."""
    with torch.no_grad():
        logits = teacher.model(torch.from_numpy(block.teacher_ids)[None]).logits[0]
    return logits[torch.from_numpy(block.teacher_scored) - 1].t().contiguous()


def test_a_block_in_a_batch_gets_the_hidden_states_it_gets_alone(teacher, blocks, monkeypatch):
    expected = torch.cat([logits_of(teacher, block) for block in blocks], dim=1)
    for limit in (1, 200, 10_000):  # one block a pass, some, all padded together
        monkeypatch.setitem(scoring.TOKENS_PER_PASS, "cpu", limit)
        output = teacher_forward(teacher, blocks)
        assert len(output.alignment) == sum(len(block.alignment) for block in blocks)
        torch.testing.assert_close(
            output.logits(0, expected.shape[1]), expected, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(output.logits(3, 9), expected[:, 3:9], rtol=1e-4, atol=1e-5)


def test_softcap_and_bias_of_the_head_are_applied(teacher, blocks):
    plain = teacher_forward(teacher, blocks[:1]).logits(0, 4)
    layer = teacher.model.get_output_embeddings()
    bias = torch.linspace(-1, 1, plain.shape[0])
    try:
        layer.bias, teacher.logit_softcap = torch.nn.Parameter(bias), 3.0
        capped = teacher_forward(teacher, blocks[:1]).logits(0, 4)
    finally:
        layer.bias, teacher.logit_softcap = None, None
    torch.testing.assert_close(capped, 3.0 * ((plain + bias[:, None]) / 3.0).tanh())


def test_teacher_nats_are_the_experts_own_cross_entropy(teacher, projector, blocks, tmp_path):
    scored = score(teacher, projector, blocks, with_teacher_nats=True)
    total = 0.0
    for part, block in zip(scored, blocks, strict=True):
        ids = torch.from_numpy(block.alignment.teacher_ids)
        log_p = logits_of(teacher, block).log_softmax(0)
        own = -log_p.gather(0, ids.clamp_min(0)[None])[0][ids >= 0].sum()
        assert part.teacher_nats == pytest.approx(float(own), rel=1e-4)
        total += float(own)
    store = TargetStore(tmp_path / "with", KEY)
    store.add(scored[:2], 320)
    store.add(scored[2:], 320)
    store.finish({})
    text_bytes = sum(block.text_bytes for block in blocks)
    assert store.teacher_bits_per_byte() == pytest.approx(total / np.log(2) / text_bytes, rel=1e-4)
    without = TargetStore(tmp_path / "without", KEY)
    without.add(scored[:2], 320)
    without.add(score(teacher, projector, blocks[2:]), 320)
    without.finish({})
    assert without.teacher_bits_per_byte() is None


def test_targets_are_the_same_when_memory_holds_smaller_passes(
    teacher, projector, blocks, monkeypatch
):
    expected = score(teacher, projector, blocks)
    real, passes = Teacher.hidden_states, []

    def limited(self, input_ids, attention_mask):
        passes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids, attention_mask)

    monkeypatch.setattr(Teacher, "hidden_states", limited)
    fresh = Teacher(teacher.model, teacher.tokenizer, SPEC)
    found = score(fresh, projector, blocks)
    assert max(passes) > 1 and fresh.memory_divisor > 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.top_mass, other.top_mass, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.weight, other.weight, rtol=1e-4, atol=1e-6)


def test_a_projection_that_runs_out_of_memory_is_repeated_with_the_same_draws(
    teacher, projector, blocks, monkeypatch
):
    expected = score(teacher, projector, blocks[:1])
    real, calls = scoring.sparsify, []

    def limited(q_t, *rest):
        calls.append(q_t.shape[1])
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(q_t, *rest)

    monkeypatch.setattr(scoring, "sparsify", limited)
    fresh = Teacher(teacher.model, teacher.tokenizer, SPEC)
    (found,) = score(fresh, projector, blocks[:1])
    assert fresh.memory_divisor == 2 and max(calls[2:]) <= max(calls[:2])
    np.testing.assert_allclose(found.top_mass, expected[0].top_mass, rtol=1e-4, atol=1e-6)


def score(
    teacher, projector, blocks, top_k: int = 8, seed: int = 0, with_teacher_nats: bool = False
) -> list[BlockTargets]:
    return score_blocks(
        teacher,
        projector,
        blocks,
        temperature=TEMPERATURE,
        top_k=top_k,
        draws=4,
        epochs=2,
        generator=torch.Generator().manual_seed(seed),
        heartbeat=lambda doing: None,
        with_teacher_nats=with_teacher_nats,
    )


@pytest.mark.parametrize("limit", [20, 10_000])
def test_cached_targets_are_the_projection_of_each_block(
    teacher, projector, blocks, monkeypatch, limit
):
    monkeypatch.setitem(scoring.TOKENS_PER_PASS, "cpu", limit)
    for part, block in zip(score(teacher, projector, blocks), blocks, strict=True):
        assert part.block is block
        projected = project_all(projector, logits_of(teacher, block), block)
        q_t = temper(projected.q.clone(), TEMPERATURE)
        tolerance = {"rtol": 1e-3, "atol": 1e-5}
        np.testing.assert_allclose(part.weight, projected.weight, **tolerance)
        np.testing.assert_allclose(part.residual, projected.residual, **tolerance)
        np.testing.assert_allclose(part.top_mass, q_t.topk(8, 0).values.t(), **tolerance)
        output = part.weight > 0
        np.testing.assert_allclose((part.top_mass.sum(1) + part.tail)[output], 1.0, atol=1e-5)


def test_the_same_seed_gives_the_same_targets(teacher, projector, blocks):
    one, two = (score(teacher, projector, blocks, seed=3) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        for name in ("weight", "residual", "entropy", "tail", "top_ids", "top_mass", "draws"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_online_and_cached_targets_give_the_same_loss(
    trained, teacher, projector, blocks, tmp_path
):
    """With every token kept, shards have the same distributions as online targets."""
    size = trained["prepend"].vocabulary.size
    key = msgspec.structs.replace(KEY, top_k=size)
    store = TargetStore(tmp_path, key)
    store.add(score(teacher, projector, blocks, top_k=size), size)
    store.finish({})
    cached = CachedSource(store)
    online = OnlineSource(blocks, lambda: (teacher, projector), TEMPERATURE)
    np.testing.assert_array_equal(cached.token_counts(), online.token_counts())
    for n in range(len(blocks)):
        for name in ("ids", "scored", "is_end", "text_bytes"):
            np.testing.assert_array_equal(
                getattr(cached.block(n), name), getattr(online.block(n), name)
            )
    order = [2, 0, 4]
    labels = np.concatenate([cached.block(n).ids[cached.block(n).scored] for n in order])
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(labels), 12, generator=generator).requires_grad_()
    weight = torch.randn(size, 12, generator=generator)
    results = []
    for source in (cached, online):
        parts = distillation_loss(
            hidden,
            weight,
            torch.from_numpy(labels),
            source.soft_targets(order, 0, torch.device("cpu")),
            alpha=0.5,
            temperature=TEMPERATURE,
            denominator=len(labels),
            chunk_size=16,
        )
        results.append((parts, torch.autograd.grad(parts.loss, hidden)[0]))
    (one, one_gradient), (two, two_gradient) = results
    for name in ("loss", "divergence", "ce", "teacher_weight"):
        torch.testing.assert_close(getattr(two, name), getattr(one, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(two_gradient, one_gradient, rtol=1e-3, atol=1e-6)


def test_online_targets_cover_each_position_once(teacher, projector, blocks):
    online = OnlineSource(blocks, lambda: (teacher, projector), TEMPERATURE)
    count = sum(len(block.alignment) for block in blocks)
    for size in (1, 7, 10_000):
        covered = np.zeros(count, dtype=int)
        for span, part in online.soft_targets(range(len(blocks)), 0, torch.device("cpu")).chunks(
            size
        ):
            covered[span] += 1
            assert isinstance(part, SoftTargets)
            assert part.dense is not None
            output = part.weight > 0
            sums = part.dense.sum(1)
            torch.testing.assert_close(sums[output], torch.ones_like(sums[output]))
        assert (covered == 1).all()


def test_blocks_without_an_end_of_turn_are_scored_too(teacher, projector, trained):
    block = block_of(
        chat("Go on.", "and so it", complete=False), trained["prepend"], teacher_encoder(teacher)
    )
    (part,) = score(teacher, projector, [block])
    assert len(part.weight) == len(block.student_scored)
    assert not block.is_end.any()
