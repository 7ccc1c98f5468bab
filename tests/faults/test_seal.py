"""What differs from a run's seal is restored with a warning, or refused with what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from engine.events import LogLine, StepDone
from engine.workspace import FAILPOINT
from tests.faults.test_damage import FIELDS, STEPS, Stopped, prepare, stopped_run
from tests.support.fork_server import ForkedRunning, run_forked
from tests.support.program import Root


@pytest.fixture(scope="module")
def stopped(server, text, tmp_path_factory) -> Stopped:
    """A run whose expert stays in memory, stopped after a few steps."""
    folder = tmp_path_factory.mktemp("sealed")
    return stopped_run(server, folder, text, targets__source="online", data__generate="false")


@pytest.fixture
def copy(stopped: Stopped, tmp_path: Path) -> Root:
    shutil.copytree(stopped.root, tmp_path / "copy")
    return Root(tmp_path / "copy", Path(), tmp_path / "copy" / "text.jsonl", register=False)


def resume(server, root: Root) -> list[str]:
    """Resume to the end; the warnings in the log."""
    running = ForkedRunning(server, root, ["resume"])
    assert running.process.wait(90) == 0, running.errors.read_text()
    return [e.text for e in running.events() if isinstance(e, LogLine) and e.level == "warning"]


def test_edited_text_is_refused_with_file_and_lines(server, stopped, copy: Root):
    """Case 19 of the user inputs: it used to go on with the other text, without a word."""
    before = copy.text.read_bytes()
    lines = before.splitlines(keepends=True)
    changed = [line.replace(b"river", b"rover") for line in lines[20:30]]
    lines[20:30] = changed
    copy.text.write_bytes(b"".join(lines))
    code, (error,) = run_forked(server, copy, "resume")
    assert code == 2
    assert f"{copy.text} has changed: lines 21 to 30 (of 48) differ" in error
    assert "--fresh" in error and "data.files" in error
    copy.text.write_bytes(before)
    os.utime(copy.text, (1, 1))  # a time alone means nothing
    assert resume(server, copy) == []
    assert copy.trace(STEPS) == stopped.undisturbed


def test_a_changed_template_of_the_tokenizer_is_restored(server, stopped, copy: Root):
    path = copy.ws.checkpoints_dir / "tokenizer" / "chat_template.jinja"
    before = path.read_text()
    path.write_text(before.replace("im_end", "im_fin"))
    (warning,) = resume(server, copy)
    assert "tokenizer was restored" in warning and "chat_template.jinja has changed" in warning
    assert path.read_text() == before
    assert copy.trace(STEPS) == stopped.undisturbed


def test_a_flipped_bit_of_an_expert_is_found_though_its_time_is_unchanged(server, copy: Root):
    path = copy.path / "tiny" / "model.safetensors"
    found = path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    code, (error,) = run_forked(server, copy, "resume")
    assert code == 2 and "expert tiny" in error
    assert "model.safetensors has changed (its SHA-256 differs)" in error


def test_changed_settings_of_an_expert_are_named(server, copy: Root):
    with open(copy.path / "gladius.toml", "a") as file:
        file.write("weight = 2.0\n")
    code, (error,) = run_forked(server, copy, "resume")
    assert code == 2 and "weight was 1.0 and is now 2.0" in error


def test_the_metrics_that_a_crash_took_from_the_history_are_filled_in(server, stopped, copy: Root):
    """As after a crash of the machine: the last transactions are lost, the checkpoint is not."""
    with closing(sqlite3.connect(copy.ws.history_file)) as db, db:
        db.execute("DELETE FROM events WHERE step >= 4")
        db.execute("DELETE FROM points WHERE step >= 4")
    (warning,) = resume(server, copy)
    assert "lacked metrics of steps 4 to" in warning
    assert copy.trace(STEPS) == stopped.undisturbed
    with closing(sqlite3.connect(copy.ws.history_file)) as db:
        query = "SELECT step FROM points JOIN series ON series = id WHERE metric = 'loss'"
        steps = sorted(step for (step,) in db.execute(query))
    assert steps == list(range(1, STEPS + 1))


def test_the_history_has_every_step_before_a_checkpoint_is_published(server, text, tmp_path):
    root = prepare(tmp_path / "run", text)
    fields = {**FIELDS, "data__generate": "false"}
    running = ForkedRunning(
        server, root, root.training(STEPS, **fields), **{FAILPOINT: "publish/renamed:3:both"}
    )
    assert running.process.wait(60) == -9
    saved = root.saved_steps()[-1]
    steps = {event.step for event in root.history() if isinstance(event, StepDone)}
    assert saved >= 3 and steps >= set(range(1, saved + 1))


GARBAGE = (b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b"", b"\x00" * 100)


def test_no_damaged_small_file_ends_a_command_with_a_fault(server, copy: Root):
    """Bytes that are not UTF-8 and deep nesting used to."""
    names = (
        "tmp/checkpoints/training_state.json",
        "tmp/train.lock",
        "tmp/checkpoints/config.json",
        "tmp/checkpoints/seal.json",
        "models/gladius_primary/gladius.json",
        "models/gladius_primary/validation.json",
        "tiny/config.json",
        "gladius.toml",
    )
    for number, name in enumerate(names):
        path = copy.path / name
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GARBAGE[number % len(GARBAGE)])
        for command in (["status"], ["dashboard"], ["models"]):
            code, errors = run_forked(server, copy, *command)
            assert code in (0, 1, 2, 3), (name, command, code, errors)
            assert len(errors) <= 1 and not any("this is a bug" in e for e in errors), name
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
