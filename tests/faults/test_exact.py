"""Faults that a run must survive as the run that nobody disturbed: the same losses, evaluations and
last checkpoint, bit by bit. See README.md beside this for what is tested elsewhere.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import signal
import time

import pytest

from engine.events import (
    AnyEvent,
    CheckpointSaved,
    GuardTripped,
    Pause,
    Resume,
    RunPaused,
    RunResumed,
    StepDone,
)
from engine.run.control import attach
from tests.support.program import Root, Running, gone, until

pytestmark = pytest.mark.timeout(600)

STEPS = 80
DAY = 86400.0
FIELDS = {
    "max_steps": STEPS,
    "checkpoint__interval_steps": 7,
    "schedule__eval_interval": 16,
    "student__hidden_size": 64,
    "student__max_position_embeddings": 256,
    "optimizer__max_seq_len": 256,
    "optimizer__global_batch_size": 8,
}


@pytest.fixture(scope="module")
def undisturbed(make_root) -> dict[str, object]:
    """The trace of a run that nobody touched."""
    root: Root = make_root("undisturbed")
    result = root.run("--no-ui", *root.training(**FIELDS))
    assert result.returncode == 0, result.stderr
    return root.trace(STEPS)


def leftovers(root: Root) -> list[str]:
    return [path.name for path in root.ws.checkpoints_dir.glob(".tmp-*")]


def guards(events: list[AnyEvent], kind: str) -> list[str]:
    return [e.action for e in events if isinstance(e, GuardTripped) and e.guard == kind]


@pytest.mark.slow
def test_five_pauses_change_nothing(root: Root, undisturbed):
    """Between micro-batches and over the ends of epochs: the text is gone over many times."""
    running = root.start(*root.training(**FIELDS))
    for n in range(5):
        running.reach(5 + 14 * n)
        with attach(root.ws) as attachment:
            paused = attachment.send(Pause())
            assert isinstance(paused, RunPaused)
            before = running.steps()
            time.sleep(0.3)
            assert running.steps()[-1] <= paused.step and len(running.steps()) - len(before) <= 1
            assert isinstance(attachment.send(Resume()), RunResumed)
    assert running.end() == 0
    assert root.trace(STEPS) == undisturbed


def test_a_disk_that_runs_full_during_a_save_ends_in_order_and_with_space_all_is_as_it_was(
    root: Root, undisturbed
):
    running = root.start(*root.training(**FIELDS)).reach(9)
    # No file of the worker's may grow beyond this any more, as on a disk without room.
    resource.prlimit(running.worker_pid(), resource.RLIMIT_FSIZE, (20_000, 20_000))
    assert running.end() == 1
    (line,) = [x for x in running.errors.read_text().splitlines() if x.startswith("error: ")]
    assert "disk" in line and "resume" in line and "Traceback" not in running.errors.read_text()
    kept = root.saved_steps()
    assert kept and kept[-1] < STEPS and leftovers(root) == []
    assert root.status() == "failed"

    resumed = root.start("resume")
    assert resumed.end() == 0
    assert min(resumed.steps()) == kept[-1] + 1  # the former checkpoint verified
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_a_stopped_worker_is_told_at_once_and_goes_on_as_if_nothing_had_been(
    root: Root, undisturbed
):
    running = root.start(*root.training(**FIELDS)).reach(10)
    worker = running.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    until(lambda: guards(running.events(), "stall") == ["stopped"], 10)
    time.sleep(1.0)
    os.kill(worker, signal.SIGCONT)
    assert running.end() == 0
    assert guards(running.events(), "stall") == ["stopped", "going on"]
    assert not guards(running.events(), "worker")
    assert root.trace(STEPS) == undisturbed


_CLOCK = """
import time
_real = time.time
def _shifted():
    try:
        with open({path!r}) as file:
            return _real() + float(file.read() or 0)
    except OSError:
        return _real()
time.time = _shifted
"""


@pytest.mark.slow
def test_a_clock_set_back_and_forward_a_day_is_no_stall_and_no_negative_time(
    root: Root, undisturbed, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.mktemp("clock")
    shift = folder / "shift"
    (folder / "sitecustomize.py").write_text(_CLOCK.format(path=str(shift)))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    running = root.start(*root.training(**FIELDS)).reach(10)
    shift.write_text(str(-DAY))
    running.reach(running.steps()[-1] + 20)
    told = root.run("status").stdout
    shift.write_text(str(DAY))
    assert running.end() == 0
    steps = [e for e in running.events() if isinstance(e, StepDone)]
    jumps = [b.time - a.time for a, b in itertools.pairwise(steps)]
    assert min(jumps) < -DAY / 2 and max(jumps) > DAY / 2, "the clock was never moved"
    assert not guards(running.events(), "stall") and not guards(running.events(), "worker")
    for event in steps:
        assert event.step_seconds >= 0 and event.tokens_per_sec >= 0
        for eta in (event.phase_eta, event.run_eta):
            assert eta is None or 0 <= eta < DAY / 2
    seconds = [event.training_seconds for event in steps]
    assert seconds == sorted(seconds) and seconds[-1] < DAY / 2
    assert "-" not in told.partition("started")[2].partition("\n")[0]
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_kill_9_at_random_instants_of_worker_and_runner_changes_nothing(root: Root, undisturbed):
    """While it loads, prepares, steps, evaluates or saves; at most one interval is done again."""
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(10**6))
    print(f"FAULT_SEED={seed}")
    dice = random.Random(seed)
    running = root.start(*root.training(**FIELDS)).reach(1)
    for _ in range(int(os.environ.get("FAULT_KILLS", "12"))):
        time.sleep(dice.uniform(0.0, 2.0))
        if running.process.poll() is not None:
            break  # it had come to its end
        workers = started_workers(running)
        if dice.random() < 0.5:
            running.process.kill()
            until(lambda: all(map(gone, workers)), 10)  # noqa: B023
        elif workers:
            os.kill(workers[-1], signal.SIGKILL)
            continue  # the runner begins another; its tries may be spent
        else:
            continue
        running.process.wait()
        running = root.start("resume")
    if running.process.wait(120) != 0:
        assert root.start("resume").end() == 0
    assert leftovers(root) == []
    assert redone(root.history()) <= FIELDS["checkpoint__interval_steps"]
    assert root.trace(STEPS) == undisturbed


def started_workers(running: Running) -> list[int]:
    """Pids of the worker processes that the runner has now, started or not."""
    import psutil

    try:
        children = psutil.Process(running.pid).children()
        return [c.pid for c in children if "spawn_main" in " ".join(c.cmdline())]
    except psutil.Error:
        return []


def redone(events: list[AnyEvent]) -> int:
    """The most steps that were taken again after one interruption."""
    most, last, saved = 0, 0, 0
    for event in events:
        if isinstance(event, CheckpointSaved):
            saved = event.step
        if isinstance(event, StepDone):
            if event.step <= last:
                most = max(most, last - event.step + 1)
            last = event.step
    assert saved
    return most
