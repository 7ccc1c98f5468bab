"""Evaluation in chunks of packed, sorted blocks gives the numbers of plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from engine.distill.student import build_student
from engine.distill.train.evaluation import draw_sample, evaluate
from tests.support.small_run import CPU, make_config, make_root, prepare


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Student, tokenizer, and a held-out store in which every token of the vocabulary is kept."""
    ws = make_root(tmp_path_factory.mktemp("root"))
    config = make_config(ws, targets__top_k=320, data__held_out=0.3)
    tokenizer, prepared = prepare(ws, config)
    model = build_student(config.student, tokenizer, 0)
    with torch.no_grad():  # far enough from uniform for a difference to be seen
        model.model.embed_tokens.weight.mul_(4)
    return model, tokenizer, prepared["tiny"].held_out


def measure(model, store, tokens_per_batch: int):
    return evaluate(
        model,
        {"tiny": store},
        temperature=2.0,
        tokens_per_batch=tokens_per_batch,
        device=CPU,
        dtype=torch.float32,
        heartbeat=lambda activity: None,
    )


def test_bits_per_byte_kl_and_agreement_equal_the_dense_formulas(parts):
    model, _, store = parts
    done = measure(model, store, 512)
    nats = kl = 0.0
    text_bytes = with_target = agreed = positions = 0
    for n in range(len(store)):  # one block at a time, in fp64, without mask or packing
        row = store.block(n)
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(row.ids).long()[None]).logits[0].double()
        model.train()
        at = torch.from_numpy(row.scored).long()
        z, labels = logits[at - 1], torch.from_numpy(row.ids).long()[at]
        ce = F.cross_entropy(z, labels, reduction="none")
        nats += float(ce[~torch.from_numpy(row.is_end)].sum())
        text_bytes += row.text_bytes
        positions += len(at)
        targets = store.targets([n], 0)
        q = torch.zeros_like(z).scatter_add_(1, targets.ids.long(), targets.mass.double())
        soft = targets.weight > 0
        log_p = F.log_softmax(z / 2.0, dim=1)
        each = (torch.special.xlogy(q, q) - q * log_p).sum(1)
        kl += float(each[soft].sum())
        with_target += int(soft.sum())
        agreed += int((z.argmax(1) == q.argmax(1))[soft].sum())
    (score,) = done.scores
    assert done.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert score.bits_per_byte == done.bits_per_byte
    assert score.kl == pytest.approx(kl / with_target, rel=2e-3)
    assert score.agreement == pytest.approx(agreed / with_target, abs=1 / with_target + 1e-9)
    assert score.positions == positions


def test_the_batching_changes_nothing_and_the_model_goes_on_training(parts):
    model, _, store = parts
    one, many = measure(model, store, 1), measure(model, store, 4096)
    assert model.training
    assert one.bits_per_byte == pytest.approx(many.bits_per_byte, rel=1e-6)
    assert one.scores[0].positions == many.scores[0].positions


def test_the_whole_is_over_all_bytes(parts):
    model, _, store = parts
    settings = {
        "temperature": 2.0,
        "tokens_per_batch": 512,
        "device": CPU,
        "dtype": torch.float32,
        "beat": lambda doing: None,
    }
    done = evaluate(model, {"a": store, "b": store}, **settings)
    assert len(done.scores) == 2
    assert done.bits_per_byte == pytest.approx(done.scores[0].bits_per_byte)


def test_a_sample_follows_its_seed_stops_at_eos_and_leaves_other_generators_alone(parts):
    model, tokenizer, _ = parts

    def sample(seed: int, tokens: int = 12) -> str:
        return draw_sample(
            model, tokenizer, "Tell.", tokens, seed, torch.float32, lambda doing: None
        )

    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    with torch.no_grad():
        kept = model.model.embed_tokens.weight.clone()
        model.model.embed_tokens.weight.fill_(math.nan)
        assert sample(1) == ""  # a broken student says nothing
        model.model.embed_tokens.weight.copy_(kept)
