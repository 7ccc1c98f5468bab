"""Metrics sent to TensorBoard, Weights & Biases and Trackio, with the real libraries, offline."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from engine.errors import MissingError
from engine.events import EvalDone, RunEnded, RunStarted, SampleDrawn, StepDone
from engine.run.extras import RunExtras
from engine.run.runner import run_job
from engine.run.sinks import sink as sinks
from engine.run.sinks.sink import SINKS, RunInfo, SinkKind, SinkThread
from engine.workspace import Workspace
from tests.run.test_runs import step


def installed(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not installed: pip install {name}"
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=reason)


EVENTS = (
    RunStarted(run_id="r", job="train", attempt=1, pid=1, config={"seed": 7}),
    step(1, 3.0),
    EvalDone(step=1, bits_per_byte=1.5),
    SampleDrawn(step=1, prompt="Why?", text="Because."),
    step(2, 2.5),
    RunEnded(step=2, status="completed"),
)


def send(kind: str, folder: Path) -> SinkThread:
    thread = SinkThread(SINKS[kind], RunInfo("r", "my run", folder))
    for event in EVENTS:
        thread.put(event)
    thread.close()
    return thread


@installed("tensorboard")
def test_tensorboards_event_files_have_every_metric(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert send("tensorboard", tmp_path).trouble == ""
    events = EventAccumulator(str(tmp_path / "r"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 3.0), (2, 2.5)]
    assert [e.value for e in events.Scalars("held_out/bits_per_byte")] == [1.5]
    (sample,) = events.Tensors("sample")
    assert b"Because." in sample.tensor_proto.string_val[0]


@installed("wandb")
def test_wandb_keeps_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert send("wandb", tmp_path).trouble == ""
    (file,) = tmp_path.glob("wandb/offline-run-*/run-r.wandb")
    data = file.read_bytes()
    assert b"train/loss" in data and b"held_out/bits_per_byte" in data


@installed("trackio")
def test_trackio_keeps_a_local_database(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    sys.modules.pop("trackio", None)
    assert send("trackio", tmp_path).trouble == ""
    (file,) = tmp_path.glob("*.db")
    with sqlite3.connect(file) as db:
        rows = [json.loads(row[0]) for row in db.execute("SELECT metrics FROM metrics")]
    assert any(row.get("train/loss") == 3.0 for row in rows), rows


def test_a_sink_that_is_not_installed_is_refused_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install wandb"):
        RunExtras(log_to=("wandb",)).check(Workspace.find(tmp_path), resume=False)


BROKEN = """
import time
class Broken:
    def log(self, step, time, values): raise SystemExit("the service is gone")
    def text(self, step, time, name, text): pass
    def close(self, status): raise OSError("and so is its socket")
class Slow(Broken):
    def log(self, step, at, values): time.sleep(3600)
def open_sink(run):
    return Slow() if run.name == "slow" else Broken()
"""


@pytest.fixture
def broken(tmp_path, monkeypatch) -> SinkKind:
    (tmp_path / "broken_sink.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = SinkKind("broken", "sys", "broken_sink")
    monkeypatch.setattr(sinks, "SINKS", {"broken": kind})
    return kind


def test_the_first_error_turns_it_off(broken, tmp_path):
    thread = SinkThread(broken, RunInfo("r", "r", tmp_path))
    for event in EVENTS:
        thread.put(event)
    thread.close()
    assert thread.trouble == "metrics no longer go to broken (SystemExit: the service is gone)"


def test_a_sink_that_hangs_holds_nothing_up(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "_QUEUE", 4)
    monkeypatch.setattr(sinks, "_CLOSE_SECONDS", 0.1)
    thread = SinkThread(broken, RunInfo("r", "slow", tmp_path))
    began = time.monotonic()
    for event in (*EVENTS[:1], *(step(n) for n in range(100))):
        thread.put(event)
    thread.close()
    assert time.monotonic() - began < 2 and "too slow" in thread.trouble


def test_a_run_with_a_broken_sink_ends_well_and_warns_once(broken, tmp_path, monkeypatch):
    """A real runner with the toy job."""
    from engine.run import record

    monkeypatch.setattr(record, "SINKS", {"broken": broken})
    ws = Workspace.find(tmp_path / "root")
    seen: list = []
    code = run_job(
        ws,
        job="train",
        config=b'{"steps": 30, "seconds": 0.02}',
        on_event=seen.append,
        target="tests.support.toy_job:main",
        extras=RunExtras(name="the toy", note="a test", log_to=("broken",)),
    )
    assert code == 0 and sum(isinstance(event, StepDone) for event in seen) == 30
    texts = [getattr(event, "text", "") for event in seen]
    assert sum("no longer go to broken" in text for text in texts) == 1
    from engine.run.runs import find_run

    assert find_run(ws, "the toy").note == "a test"
