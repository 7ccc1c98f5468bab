"""Questions to a running and to a finished student, and runs with names, by the real commands."""

from __future__ import annotations

import csv
import importlib.util
import json

import pytest

from engine.events import QuestionAnswered, decode_event
from engine.run.lock import lock_owner
from tests.support.waiting import until


def answer(text: str) -> QuestionAnswered:
    event = decode_event(text.strip().splitlines()[-1])
    assert isinstance(event, QuestionAnswered)
    return event


@pytest.mark.slow
def test_a_run_is_named_asked_and_exported(root):
    has_tensorboard = importlib.util.find_spec("tensorboard") is not None
    log_to = ["--log-to", "tensorboard"] if has_tensorboard else []
    training = root.start(*root.training(), "--name", "first", "--note", "of two", *log_to)
    training.reach(3)
    # A running job answers between two steps: its experts' targets are stored, so only the student.
    asked = answer(root.run("--json", "ask", "Tell of the river.", "--max-tokens", "8").stdout)
    assert [a.who for a in asked.answers] == ["student"] and asked.step > 0
    assert "no expert is in memory" in asked.note
    assert "leave out --expert" in root.error_of(2, "ask", "Why?", "--expert", "tiny")
    assert root.run("stop").returncode == 0
    until(lambda: lock_owner(root.ws, "train") is None, 30)
    if has_tensorboard:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (folder,) = (root.ws.tmp / "tensorboard").iterdir()
        events = EventAccumulator(str(folder))
        events.Reload()
        last = training.steps()[-1]
        assert [e.step for e in events.Scalars("train/loss")] == list(range(1, last + 1))
    # Afterwards the newest checkpoint answers, and an expert of the run beside it.
    result = root.run("ask", "Tell of the river.", "--max-tokens", "8")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "  > Tell of the river." and "  student" in "\n".join(lines)
    assert any(line.startswith("  Tiny") for line in lines), result.stdout
    assert "the prompt is empty" in root.error_of(2, "ask", " ")

    (run,) = json.loads(root.run("--json", "runs").stdout)
    assert (run["name"], run["note"], run["status"]) == ("first", "of two", "stopped")
    path = root.ws.root / "first.csv"
    assert root.run("runs", "export", "first", str(path)).returncode == 0
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 1 and float(rows[1]["loss"]) > 0
    line = root.error_of(2, *root.training(), "--fresh", "--name", "x" * 99)
    assert "a run's name is one line" in line


def test_asking_without_a_model_names_the_remedy(root):
    assert "gladius_train train" in root.error_of(3, "ask", "Why?")
