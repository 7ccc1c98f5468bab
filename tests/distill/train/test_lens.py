"""The lens shows the distributions of a plain forward pass, and changes no state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.student import build_student
from engine.distill.train import lens
from engine.distill.train.lens import Lens, load_probes, save_probes
from engine.events import ProbeRead, decode_event, encode
from tests.support.small_run import make_config, make_root, prepare


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(workspace, config, student, the expert's probes, lens)"""
    ws = make_root(tmp_path_factory.mktemp("root"))
    config = make_config(ws)
    tokenizer, prepared = prepare(ws, config)
    model = build_student(config.student, tokenizer, 0)
    with torch.no_grad():  # far enough from uniform for a measurable difference
        model.model.embed_tokens.weight.mul_(4)
    probes = prepared["tiny"].probes
    assert probes is not None
    vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, config.student.vocab_size)
    made = Lens({"tiny": probes}, vocabulary, lambda t: str(tokenizer.convert_ids_to_tokens(t)))
    return ws, config, model, probes, made


def readings(parts) -> list[ProbeRead]:
    return list(parts[4].read(parts[2], torch.float32))


def test_every_sentence_is_shown_and_its_tokens_spell_it(parts):
    found = readings(parts)
    assert [r.probe for r in found] == list(range(len(lens.sentences())))
    for reading, example in zip(found, lens.sentences(), strict=True):
        text = example.text or example.messages[-1].content
        pieces = "".join(p.text for p in reading.positions if p.rule != "end")
        assert text.startswith(pieces) and len(pieces) > 10
        assert len(reading.positions) <= lens.MAX_POSITIONS
        assert all(p.tokens[p.follows].text == p.text for p in reading.positions)


def test_the_students_probabilities_are_those_of_a_plain_forward_pass(parts):
    _, _, model, probes, _ = parts
    for reading, row in zip(readings(parts), probes.blocks, strict=True):
        with torch.no_grad():
            p = model.eval()(torch.from_numpy(row.ids)[None]).logits[0].double().softmax(1)
        for position, at in zip(reading.positions, row.scored, strict=True):
            expected = float(p[at - 1, row.ids[at]])
            assert position.tokens[position.follows].student == pytest.approx(expected, abs=1e-4)
            best = max(token.student for token in position.tokens)
            assert best == pytest.approx(float(p[at - 1].max()), abs=1e-4)


def test_the_experts_probabilities_sum_to_1_and_kl_is_the_plain_formula(parts):
    _, _, model, probes, _ = parts
    has_target = probes.kept > 0
    assert has_target.mean() > 0.5
    np.testing.assert_allclose(probes.q[has_target].sum(1), 1.0, atol=1e-4)
    assert not probes.q[~has_target].any()
    first = readings(parts)[0]
    row = probes.blocks[0]
    with torch.no_grad():
        log_p = model.eval()(torch.from_numpy(row.ids)[None]).logits[0].double().log_softmax(1)
    for n, position in enumerate(first.positions):
        if position.kl is None:
            assert probes.kept[n] == 0
            continue
        q = torch.from_numpy(probes.q[n]).double()
        kl = float((torch.special.xlogy(q, q) - q * log_p[row.scored[n] - 1]).sum())
        assert position.kl == pytest.approx(max(kl, 0), abs=2e-3)


def test_events_are_small_and_survive_the_codec(parts):
    for reading in readings(parts):
        data = encode(reading)
        assert len(data) < 8192
        assert decode_event(data) == reading


def test_reading_draws_no_random_number_and_changes_no_weight(parts):
    model = parts[2]
    model.train()
    before = {name: w.clone() for name, w in model.named_parameters()}
    state = torch.get_rng_state()
    readings(parts)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(w, before[name]) for name, w in model.named_parameters())


def test_a_student_of_nan_has_no_kl(parts):
    _, _, model, _, made = parts
    broken = type(model)(model.config)
    with torch.no_grad():
        broken.model.embed_tokens.weight.fill_(math.nan)
    found = list(made.read(broken, torch.float32))
    assert all(p.kl is None for r in found for p in r.positions)
    assert all(decode_event(encode(r)) == r for r in found)


def test_the_probes_are_stored_with_the_targets_and_found_on_resume(parts, tmp_path):
    ws, config, _, probes, _ = parts
    _, prepared = prepare(ws, config)  # the shards are complete: no expert is loaded
    kept = prepared["tiny"].probes
    assert kept is not None
    assert np.array_equal(kept.q, probes.q) and np.array_equal(kept.kept, probes.kept)
    assert [r.ids.tolist() for r in kept.blocks] == [r.ids.tolist() for r in probes.blocks]
    assert [r.scored.tolist() for r in kept.blocks] == [r.scored.tolist() for r in probes.blocks]


@pytest.mark.parametrize("harm", ["absent", "cut", "other sentences"])
def test_damaged_or_outdated_probes_are_not_loaded(parts, tmp_path, harm, monkeypatch):
    path = tmp_path / "probes.safetensors"
    save_probes(path, parts[3])
    assert load_probes(path) is not None
    if harm == "absent":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        sentences = lens.sentences()
        monkeypatch.setattr(lens, "sentences", lambda: sentences[1:])
    assert load_probes(path) is None
