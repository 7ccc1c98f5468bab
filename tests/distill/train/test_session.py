"""The state of a student in training: taken and put back, it goes on exactly."""

from __future__ import annotations

import pytest
import torch

from engine.distill.student import build_student
from engine.distill.train.session import Session, make_optimizer
from tests.support.small_run import KeepingLink, make_config, make_root, make_trainer, weights
from tests.support.toys import byte_level


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_restored_session_continues_exactly(ws, tmp_path, tied):
    config = make_config(
        ws,
        schedule__max_steps=8,
        student__tie_word_embeddings=tied,
        checkpoint__interval_steps=4,
        checkpoint__keep=5,
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    uninterrupted = make_trainer(ws, config, KeepingLink(), tmp_path / "one")
    uninterrupted.run()
    state, _ = uninterrupted.checkpoints.store.load(4)

    link = KeepingLink()
    resumed = make_trainer(ws, config, link, tmp_path / "two")
    resumed.restore(state)
    assert resumed.session.progress.step == 4
    resumed.run()
    assert link.steps() == [5, 6, 7, 8]
    expected = weights(uninterrupted)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert resumed.session.progress == uninterrupted.session.progress
    assert resumed.session.guard.state == uninterrupted.session.guard.state


def test_tied_weights_are_stored_once_and_stay_tied(ws):
    config = make_config(ws)
    tokenizer = byte_level()
    one = Session(build_student(config.student, tokenizer, 0), config.optimizer, config.guards, "t")
    two = Session(build_student(config.student, tokenizer, 1), config.optimizer, config.guards, "t")
    state = one.state(12.5)
    assert "lm_head.weight" not in state.model_state
    assert state.scalars["training_seconds"] == 12.5
    two.restore(state, rollbacks=1)
    assert two.output_matrix is two.model.model.embed_tokens.weight
    assert torch.equal(two.output_matrix, one.output_matrix)
    assert two.guard.rollbacks == 1


def test_only_matrices_have_weight_decay(ws):
    config = make_config(ws, optimizer__weight_decay=0.3)
    model = build_student(config.student, byte_level(), 0)
    optimizer = make_optimizer(model, config.optimizer)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.3 if parameter.dim() > 1 else 0.0)
