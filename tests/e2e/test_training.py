"""Training through the command line: from text to a model that transformers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config import from_json
from engine.events import (
    CheckpointRejected,
    EvalDone,
    GuardTripped,
    PhaseStarted,
    RunEnded,
    RunStarted,
    SampleDrawn,
    StepDone,
    decode_event,
)
from engine.sizing import parameter_count
from tests.support.program import SMALL, Root

STEPS = 24
UNUSUAL_TEXTS = (
    "🙂 and 👩‍👩‍👧 e\u0301 ก\u0e48",
    "one\r\n\n\ttab   spaces ",
    "漢字 العربية \u00a0\u200b\ufeff",
    "<|im_end|> </s> <0x0A> Ġ <|unused_0|>",
    "\x00\x7f",
    "",
    " ",
)


@pytest.fixture(scope="module")
def finished(make_root) -> tuple[Root, list]:
    """A root with a finished run of STEPS steps, and its events from `--json`."""
    root: Root = make_root("finished")
    result = root.run("--json", *root.training(STEPS, checkpoint__interval_steps=5))
    assert result.returncode == 0, result.stderr
    return root, [decode_event(line) for line in result.stdout.splitlines()]


@pytest.fixture
def copy(finished, tmp_path) -> Root:
    """A copy of the finished root, to change."""
    root = finished[0]
    shutil.copytree(root.path, tmp_path, dirs_exist_ok=True)
    return Root(tmp_path, Path(_repo(root)), root.text)


def end_of(events: list) -> RunEnded:
    (end,) = [e for e in events if isinstance(e, RunEnded)]
    return end


def _repo(root: Root) -> str:
    (line,) = (
        n for n in (root.path / "gladius.toml").read_text().splitlines() if n.startswith("repo")
    )
    return json.loads(line.partition("=")[2])


def test_json_output_has_all_events_of_the_run(finished):
    _, events = finished
    steps = [e for e in events if isinstance(e, StepDone)]
    assert [e.step for e in steps] == list(range(1, STEPS + 1))
    assert all(e.loss is not None and not e.skipped for e in steps)
    assert end_of(events).status == "completed"
    phases = [e.name for e in events if isinstance(e, PhaseStarted)]
    assert phases == ["Create the student", "Tiny", "All experts", "Save the model"]
    evaluations = [e for e in events if isinstance(e, EvalDone)]
    assert evaluations[0].step == 0 and evaluations[-1].step == STEPS
    assert evaluations[-1].bits_per_byte < evaluations[0].bits_per_byte
    samples = [e for e in events if isinstance(e, SampleDrawn)]
    assert [e.step for e in samples] == [e.step for e in evaluations]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


def test_transformers_loads_the_model(finished):
    root, events = finished
    model = AutoModelForCausalLM.from_pretrained(root.ws.model_dir)
    started = next(e for e in events if isinstance(e, RunStarted))
    config = from_json(json.dumps(started.config).encode())
    count = sum(p.numel() for p in model.parameters())
    assert count == parameter_count(config.student).total
    assert count == started.target_params
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
        assert getattr(model.config, name) == SMALL[f"student.{name}"]
    tokenizer = AutoTokenizer.from_pretrained(root.ws.model_dir)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    chat = [{"role": "user", "content": "Tell of the river."}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    tokenizer.decode(out[0])


def test_the_models_tokenizer_encodes_like_the_training_tokenizer(finished):
    root, _ = finished
    trained = AutoTokenizer.from_pretrained(root.ws.checkpoints_dir / "tokenizer")
    saved = AutoTokenizer.from_pretrained(root.ws.model_dir)
    for text in UNUSUAL_TEXTS:
        assert saved(text).input_ids == trained(text).input_ids
        assert saved.decode(saved(text).input_ids) == text


def test_a_finished_run_given_more_steps_resumes_from_before_its_decay(copy):
    journal = (copy.ws.checkpoints_dir / "journal.jsonl").read_text()
    decay = next(d["step"] for d in map(json.loads, journal.splitlines()) if "decay" in d["kind"])
    assert "the run is complete" in copy.error_of(2, "resume")
    running = copy.start("resume", "--set", f"schedule.max_steps={STEPS + 8}")
    assert running.end() == 0, running.errors.read_text()
    steps = [e for e in running.events() if isinstance(e, StepDone)]
    assert [e.step for e in steps] == list(range(decay + 1, STEPS + 9))
    assert steps[0].lr == pytest.approx(0.002)  # not decayed
    assert end_of(running.events()).status == "completed"


def test_fresh_moves_the_previous_checkpoints_aside(copy):
    previous = {p.name for p in copy.ws.checkpoints_dir.glob("step-*")}
    fresh = copy.training(4, student__num_hidden_layers=1)
    assert copy.run("--no-ui", *fresh, "--fresh").returncode == 0
    (aside,) = copy.ws.checkpoints_dir.glob("old-*")
    assert previous <= {p.name for p in aside.iterdir()}
    assert copy.saved_steps()[-1] == 4
    model = AutoModelForCausalLM.from_pretrained(copy.ws.model_dir)
    assert model.config.num_hidden_layers == 1


@pytest.mark.slow
def test_a_run_with_hours_ends_in_time_with_all_phases_done(root):
    hours = 0.004
    running = root.start(*root.training(None), "--hours", str(hours))
    assert running.end() == 0, running.errors.read_text()
    events = running.events()
    assert [e.phase for e in events if isinstance(e, PhaseStarted)] == [0, 1, 2, 3]
    steps = [e for e in events if isinstance(e, StepDone)]
    end = end_of(events)
    assert end.status == "completed"
    assert end.seconds < hours * 3600 * 1.25
    # the decay was done
    assert steps[-1].lr < 0.5 * max(e.lr for e in steps)


def test_training_a_finished_config_again_starts_a_new_run(copy):
    """The previous checkpoints are moved aside."""
    result = copy.run("--no-ui", *copy.training(4))
    assert result.returncode == 0 and "moved aside" in result.stderr
    assert list(copy.ws.checkpoints_dir.glob("old-*/step-*"))


def test_an_undisturbed_run_trips_no_guard_and_rejects_no_checkpoint(finished):
    _, events = finished
    assert not [e for e in events if isinstance(e, (CheckpointRejected, GuardTripped))]
