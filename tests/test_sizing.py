"""Sizes computed from a config."""

from __future__ import annotations

import msgspec
import pytest

from engine.config import load_config
from engine.sizing import checkpoint_bytes, parameter_count, training_memory
from engine.workspace import Workspace


@pytest.fixture
def one_b(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    return load_config(ws, preset="1b")


def test_the_1b_student_has_1_147_766_784_parameters_tied(one_b):
    assert parameter_count(one_b.student).total == 1_147_766_784
    untied = msgspec.structs.replace(one_b.student, tie_word_embeddings=False)
    assert parameter_count(untied).total == 1_213_302_784
    parts = parameter_count(untied)
    assert parts.embeddings == 2 * 32_000 * 2048 and parts.norm == 2048
    assert parts.embeddings + parts.layers + parts.norm == parts.total


def test_state_and_checkpoint_of_the_1b_student(one_b):
    need = training_memory(one_b, half_precision=True)
    assert need.state / 2**30 == pytest.approx(17.1, abs=0.05)
    assert need.half_copy / 2**30 == pytest.approx(2.1, abs=0.05)
    assert need.total == need.state + need.half_copy + need.activations + need.loss
    assert training_memory(one_b, half_precision=False).half_copy == 0
    assert checkpoint_bytes(one_b.student) / 2**30 == pytest.approx(12.8, abs=0.05)
    for part in (f"{need.total / 2**30:.1f} GiB", "AdamW 17.1", "bf16 copy 2.1"):
        assert part in need.sentence()


def test_short_sequences_and_activation_checkpointing_fit_the_1b_student_into_24_gib(one_b):
    optimizer = msgspec.structs.replace(
        one_b.optimizer, max_seq_len=256, micro_batch_size=1, activation_checkpointing=True
    )
    config = msgspec.structs.replace(one_b, optimizer=optimizer)
    assert training_memory(config, half_precision=True).total < 22 * 2**30


def test_smaller_batches_shorter_sequences_and_checkpointing_each_need_less_memory(one_b):
    def need(**changes) -> int:
        optimizer = msgspec.structs.replace(one_b.optimizer, **changes)
        config = msgspec.structs.replace(one_b, optimizer=optimizer)
        return training_memory(config, half_precision=True).total

    assert need(micro_batch_size=1) < need(micro_batch_size=2)
    assert need(activation_checkpointing=True) < need()
    assert need(max_seq_len=1024) < need(max_seq_len=2048)
