"""Reading a config: layers, problems, former names, changes on resume."""

from __future__ import annotations

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
from engine.small_files import Damaged
from engine.workspace import Workspace


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return Workspace.find(tmp_path)


def problems(ws: Workspace, **options) -> list[str]:
    """The lines of the UsageError that `options` raise."""
    with pytest.raises(UsageError) as raised:
        load_config(ws, **options)
    return str(raised.value).splitlines()


def test_the_default_preset_is_1b_whose_values_are_the_defaults(ws):
    assert {"1b", "nano"} <= set(preset_names())
    config = load_config(ws)
    assert config == load_config(ws, preset="1b")
    plain = RunConfig()
    for section in ("student", "experts", "targets", "loss", "optimizer", "checkpoint", "guards"):
        assert getattr(config, section) == getattr(plain, section)


def test_every_preset_is_valid_and_names_itself(ws):
    for name in preset_names():
        assert load_config(ws, preset=name).preset == name


def test_options_override_set_which_overrides_the_file_which_overrides_the_preset(ws, tmp_path):
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


def test_all_problems_are_reported_at_once_with_field_and_remedy(ws, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text("[student]\nhiden_size = 3\n[optimizer]\nlr = -1\nglobal_batch_size = 7")
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
        ("optimizer.global_batch_size", "7 must be a multiple of micro_batch_size 2"),
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
def test_fields_that_do_not_fit_together_are_named(ws, override, field):
    (line,) = problems(ws, overrides=[override])
    assert line.startswith(f"config: {field}: ")


def test_an_unknown_preset_and_a_broken_file_are_reported(ws, tmp_path):
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


def test_json_and_toml_round_trip(ws, tmp_path):
    config = load_config(
        ws, preset="nano", overrides=["checkpoint.interval_minutes=none", "loss.temperature=1"]
    )
    assert from_json(to_json(config)) == config
    (tmp_path / "copy.toml").write_text(to_toml(config))
    assert load_config(ws, file=tmp_path / "copy.toml") == config


def test_json_with_unknown_fields_is_refused():
    with pytest.raises(Damaged):
        from_json(b'{"studnt": {}}')


def test_the_digest_covers_fixed_fields_but_not_mutable_ones(ws):
    config = load_config(ws, preset="nano")
    longer = load_config(ws, preset="nano", overrides=["schedule.max_steps=9"], hours=2)
    other = load_config(ws, preset="nano", overrides=["loss.alpha=0"])
    assert digest(config) == digest(longer) != digest(other)
    assert len(digest(config)) == 16


def test_changed_fields_lists_old_and_new_value_and_whether_the_change_is_allowed(ws):
    config = load_config(ws, preset="nano")
    changed = change_config(ws, config, ["loss.temperature=3", "optimizer.micro_batch_size=2"], 0.5)
    assert changed_fields(config, changed) == [
        ("loss.temperature", 1.0, 3.0, False),
        ("optimizer.micro_batch_size", 4, 2, True),
        ("schedule.hours", None, 0.5, True),
    ]
    with pytest.raises(UsageError, match=r"optimizer\.global_batch_size"):
        change_config(ws, config, ["optimizer.micro_batch_size=3"], None)


# Former names of fields

FORMER, NOW = "optimizer.rows_per_step", "optimizer.global_batch_size"
NOTE = f"{FORMER} is now called {NOW}"


def test_a_former_name_is_read_from_a_file_and_from_set_with_a_line_that_names_the_new_one(
    ws, tmp_path
):
    file = tmp_path / "old.toml"
    file.write_text('preset = "nano"\n[optimizer]\nrows_per_step = 12\n')
    notes: list[str] = []
    assert load_config(ws, file=file, notes=notes).optimizer.global_batch_size == 12
    assert notes == [NOTE]
    notes = []
    config = load_config(ws, preset="nano", overrides=[f"{FORMER}=8"], notes=notes)
    assert config.optimizer.global_batch_size == 8
    assert notes == [NOTE]
    notes = []
    changed = change_config(ws, config, [f"{FORMER}=16"], None, notes)
    assert changed_fields(config, changed) == [(NOW, 8, 16, False)]
    assert notes == [NOTE]


def test_the_new_name_overrides_the_former_one_of_a_lower_layer(ws, tmp_path):
    file = tmp_path / "old.toml"
    file.write_text('preset = "nano"\n[optimizer]\nrows_per_step = 12\n')
    assert load_config(ws, file=file, overrides=[f"{NOW}=20"]).optimizer.global_batch_size == 20


def test_both_names_of_a_field_in_one_place_are_refused(ws, tmp_path):
    file = tmp_path / "both.toml"
    file.write_text("[optimizer]\nrows_per_step = 12\nglobal_batch_size = 12\n")
    (line,) = problems(ws, file=file)
    assert FORMER in line and NOW in line


def test_a_stored_config_with_former_names_is_the_same_config_with_the_same_digest(ws):
    config = load_config(ws, preset="nano")
    stored = to_json(config).replace(b"global_batch_size", b"rows_per_step")
    stored = stored.replace(b'"divergence":"forward_kl",', b"")
    assert b"divergence" not in stored
    notes: list[str] = []
    assert changed_fields(from_json(stored, notes), config) == []
    assert notes == [NOTE]
    # recorded with the version before both changes
    assert digest(RunConfig()) == "7b419720c5046d6a"
    other = load_config(ws, preset="nano", overrides=["loss.divergence=jsd"])
    assert digest(other) != digest(config)


@pytest.mark.parametrize("preset", ["nano", "demo"])
def test_a_kill_costs_a_small_preset_half_a_minute_at_most(ws, preset):
    assert load_config(ws, preset=preset).checkpoint.interval_minutes == 0.5
