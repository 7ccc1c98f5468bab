"""Reading a config: layers, all problems at once, what may change."""

from __future__ import annotations

import msgspec
import pytest

from engine.config import (
    RunConfig,
    change_config,
    changed_fields,
    digest,
    from_json,
    load_config,
    preset_names,
    to_json,
    to_toml,
)
from engine.errors import UsageError
from engine.workspace import Workspace


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return Workspace.find(tmp_path)


def problems(ws: Workspace, **options) -> list[str]:
    """The lines of the UsageError that `options` raise."""
    with pytest.raises(UsageError) as raised:
        load_config(ws, **options)
    return str(raised.value).splitlines()


def test_without_a_preset_it_is_1b_whose_student_is_what_the_fields_default_to(ws):
    assert {"1b", "nano"} <= set(preset_names())
    config = load_config(ws)
    assert config == load_config(ws, preset="1b")
    plain = RunConfig()
    for section in ("student", "experts", "targets", "loss", "optimizer", "checkpoint", "guards"):
        assert getattr(config, section) == getattr(plain, section)


def test_every_preset_is_valid_and_names_itself(ws):
    for name in preset_names():
        assert load_config(ws, preset=name).preset == name


def test_options_go_over_set_over_file_over_preset(ws, tmp_path):
    file = tmp_path / "my.toml"
    file.write_text(
        'preset = "nano"\n[optimizer]\nlr = 1e-3\nbeta1 = 0.8\n[schedule]\nhours = 1\nreplay = 0.5'
    )
    config = load_config(
        ws, file=file, overrides=["optimizer.beta1=0.7", "schedule.hours=2"], hours=3
    )
    assert config.preset == "nano"
    assert config.student.hidden_size == 256
    assert (config.optimizer.lr, config.optimizer.beta1) == (1e-3, 0.7)
    assert (config.schedule.replay, config.schedule.hours) == (0.5, 3.0)


def test_set_takes_toml_values_and_bare_text(ws):
    config = load_config(
        ws,
        preset="nano",
        overrides=[
            "device.device=cpu",
            "device.precision='fp32'",
            "experts.weights={smollm2 = 2.0}",
            "data.generate=true",
            "schedule.expert_tokens=2e6",
            "checkpoint.interval_minutes=none",
            "experts.names = ['smollm2']",
        ],
    )
    assert (config.device.device, config.device.precision) == ("cpu", "fp32")
    assert config.experts.weights == {"smollm2": 2.0}
    assert config.schedule.expert_tokens == 2_000_000
    assert config.checkpoint.interval_minutes is None


def test_all_problems_are_told_at_once_with_field_and_remedy(ws, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("[student]\nhiden_size = 3\n[optimizer]\nlr = -1\nrows_per_step = 7")
    first, *lines = problems(
        ws,
        file=file,
        overrides=[
            "optimizer.micro_batch_size=2",
            "device.device=tpu",
            "loss",
            "data.held_out=nan",
        ],
        experts=["qwenn"],
        data=["nowhere.jsonl"],
    )
    assert first == "config: 8 problems"
    expected = [
        ("loss", "section.field=value"),
        ("student.hiden_size", "did you mean 'hidden_size'?"),
        ("optimizer.lr", "-1 is not a number over 0"),
        ("device.device", "'tpu' is not one of auto, cpu, cuda, mps"),
        ("data.held_out", "nan is not a number over 0 and under 1"),
        ("optimizer.rows_per_step", "7 must be a multiple of micro_batch_size 2"),
        ("experts.names", "unknown expert 'qwenn'; did you mean 'qwen'?"),
        ("data.files", "nowhere.jsonl doesn't exist"),
    ]
    for name, text in expected:
        assert any(name in line and text in line for line in lines), (name, text, lines)


def test_one_problem_is_one_line(ws):
    (line,) = problems(ws, overrides=["schedule.max_steps=0"])
    assert line == "config: schedule.max_steps: 0 is not a whole number at least 1 or none"


def test_a_wrong_leaf_does_not_raise_a_second_problem_across_fields(ws):
    (line,) = problems(ws, overrides=["student.num_attention_heads=abc"])
    assert "num_attention_heads" in line


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("student.num_attention_heads=24", "student.num_attention_heads"),
        ("student.num_key_value_heads=3", "student.num_key_value_heads"),
        ("optimizer.max_seq_len=16384", "optimizer.max_seq_len"),
        ("student.vocab_size=70000", "student.vocab_size"),
        ("targets.top_k=40000", "targets.top_k"),
        ("schedule.decay_share=0.5", "schedule.decay_share"),
        ("experts.names=['qwen', 'qwen']", "experts.names"),
        ("experts.names=[]", "experts.names"),
        ("experts.weights={gemma = 1}", "experts.weights"),
        ("student.tokenizer=qwem", "student.tokenizer"),
        ("student.tokenizer=no/such/folder", "student.tokenizer"),
        ("data.generate=false", "data.generate"),
        ("optimizer=3", "optimizer"),
        ("optimizer.lr=inf", "optimizer.lr"),
        ("seed=1.5", "seed"),
        ("optimizer.activation_checkpointing=1", "optimizer.activation_checkpointing"),
    ],
)
def test_what_does_not_fit_together_is_named(ws, override, field):
    (line,) = problems(ws, overrides=[override])
    assert line.startswith(f"config: {field}: ")


def test_an_unknown_preset_and_a_broken_file_are_told(ws, tmp_path):
    assert "did you mean 'nano'?" in problems(ws, preset="nanno")[0]
    (tmp_path / "x.toml").write_text("[student\n")
    assert "x.toml" in problems(ws, file=tmp_path / "x.toml")[0]
    assert "gone.toml" in problems(ws, file=tmp_path / "gone.toml")[0]


def test_paths_become_absolute(ws, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "tok").mkdir()
    config = load_config(ws, data=["a.jsonl"], overrides=["student.tokenizer=./tok"])
    assert config.data.files == [str(tmp_path / "a.jsonl")]
    assert config.student.tokenizer == str(tmp_path / "tok")


def test_json_and_toml_give_the_same_config_back(ws, tmp_path):
    config = load_config(
        ws, preset="nano", overrides=["checkpoint.interval_minutes=none", "loss.temperature=1"]
    )
    assert from_json(to_json(config)) == config
    (tmp_path / "copy.toml").write_text(to_toml(config))
    assert load_config(ws, file=tmp_path / "copy.toml") == config


def test_a_json_config_of_another_shape_is_refused():
    with pytest.raises(msgspec.ValidationError):
        from_json(b'{"studnt": {}}')


def test_the_digest_sees_fixed_fields_and_not_mutable_ones(ws):
    config = load_config(ws, preset="nano")
    longer = load_config(ws, preset="nano", overrides=["schedule.max_steps=9"], hours=2)
    other = load_config(ws, preset="nano", overrides=["loss.alpha=0"])
    assert digest(config) == digest(longer) != digest(other)
    assert len(digest(config)) == 16


def test_what_changed_is_told_with_whether_it_may(ws):
    config = load_config(ws, preset="nano")
    changed = change_config(ws, config, ["loss.temperature=3", "optimizer.micro_batch_size=2"], 0.5)
    assert changed_fields(config, changed) == [
        ("loss.temperature", 1.0, 3.0, False),
        ("optimizer.micro_batch_size", 4, 2, True),
        ("schedule.hours", None, 0.5, True),
    ]
    with pytest.raises(UsageError, match=r"optimizer\.rows_per_step"):
        change_config(ws, config, ["optimizer.micro_batch_size=3"], None)
