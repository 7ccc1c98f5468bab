"""After these faults a run has the same losses, evaluations and last checkpoint as an undisturbed
one, bit for bit. README.md in this folder lists the tests of other faults.
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
from engine.run.state import read_state
from tests.support.program import Root, Running
from tests.support.waiting import gone, until

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
    """The trace of an undisturbed run."""
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
    """Pauses between micro-batches and across epochs: the text is short, so a run has many."""
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


@pytest.mark.slow
def test_a_full_disk_pauses_the_run_which_then_continues_exactly(
    root: Root, undisturbed, monkeypatch
):
    monkeypatch.setenv("GLADIUS_DISK_SECONDS", "0.2")
    running = root.start(*root.training(**FIELDS)).reach(9)
    worker = running.worker_pid()
    everything = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    # Limit the size of the worker's files, as a full disk does.
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (20_000, everything[1]))
    until(lambda: root.status() == "paused", 30)
    steps = running.steps()
    assert "can't be written: file too large" in read_state(root.ws).last_error
    (guard,) = guards(running.events(), "disk")
    assert "continues when there is room" in guard
    time.sleep(1.0)
    assert running.steps() == steps
    until(lambda: leftovers(root) == [], 5)  # each try makes one and removes it
    resource.prlimit(worker, resource.RLIMIT_FSIZE, everything)
    assert running.end() == 0
    assert not read_state(root.ws).last_error and len(guards(running.events(), "disk")) == 1
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_a_run_that_is_stopped_while_the_disk_is_full_is_resumed_exactly(root: Root, undisturbed):
    running = root.start(*root.training(**FIELDS)).reach(9)
    resource.prlimit(running.worker_pid(), resource.RLIMIT_FSIZE, (20_000, 20_000))
    until(lambda: root.status() == "paused", 30)
    assert running.end(signal.SIGTERM) == 1
    (line,) = [x for x in running.errors.read_text().splitlines() if x.startswith("error: ")]
    assert "disk" in line and "resume" in line and "Traceback" not in running.errors.read_text()
    kept = root.saved_steps()
    assert kept and kept[-1] < STEPS and leftovers(root) == []
    assert root.status() == "failed"

    resumed = root.start("resume")
    assert resumed.end() == 0
    assert min(resumed.steps()) == kept[-1] + 1  # the previous checkpoint verified
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_a_worker_stopped_by_sigstop_is_reported_and_continues_exactly(root: Root, undisturbed):
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
def test_a_clock_set_back_and_forward_by_a_day_causes_no_stall_and_no_negative_time(
    root: Root, undisturbed, tmp_path_factory, monkeypatch
):
    folder = tmp_path_factory.mktemp("clock")
    shift = folder / "shift"
    (folder / "sitecustomize.py").write_text(_CLOCK.format(path=str(shift)))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    running = root.start(*root.training(**FIELDS)).reach(10)
    shift.write_text(str(-DAY))
    running.reach(running.steps()[-1] + 20)
    status = root.run("status").stdout
    shift.write_text(str(DAY))
    assert running.end() == 0
    steps = [e for e in running.events() if isinstance(e, StepDone)]
    jumps = [b.time - a.time for a, b in itertools.pairwise(steps)]
    assert min(jumps) < -DAY / 2 and max(jumps) > DAY / 2, "the clock was not changed"
    assert not guards(running.events(), "stall") and not guards(running.events(), "worker")
    for event in steps:
        assert event.step_seconds >= 0 and event.tokens_per_sec >= 0
        for eta in (event.phase_eta, event.run_eta):
            assert eta is None or 0 <= eta < DAY / 2
    seconds = [event.training_seconds for event in steps]
    assert seconds == sorted(seconds) and seconds[-1] < DAY / 2
    assert "-" not in status.partition("started")[2].partition("\n")[0]
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_kill_9_of_worker_and_runner_at_random_times_changes_nothing(root: Root, undisturbed):
    """While it loads, prepares, trains, evaluates or saves; at most one checkpoint interval is
    repeated."""
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(10**6))
    print(f"FAULT_SEED={seed}")
    rng = random.Random(seed)
    running = root.start(*root.training(**FIELDS)).reach(1)
    for _ in range(int(os.environ.get("FAULT_KILLS", "12"))):
        time.sleep(rng.uniform(0.0, 2.0))
        if running.process.poll() is not None:
            break  # the run was already complete
        workers = started_workers(running)
        if rng.random() < 0.5:
            running.process.kill()
            until(lambda: all(map(gone, workers)), 10)  # noqa: B023
        elif workers:
            os.kill(workers[-1], signal.SIGKILL)
            continue  # the runner starts another one, or fails after too many restarts
        else:
            continue
        running.process.wait()
        running = root.start("resume")
    if running.process.wait(120) != 0:
        assert root.start("resume").end() == 0
    assert leftovers(root) == []
    assert most_repeated_steps(root.history()) <= FIELDS["checkpoint__interval_steps"]
    assert root.trace(STEPS) == undisturbed


def started_workers(running: Running) -> list[int]:
    """Pids of the runner's worker processes, including those that are still starting."""
    import psutil

    try:
        children = psutil.Process(running.pid).children()
        return [c.pid for c in children if "spawn_main" in " ".join(c.cmdline())]
    except psutil.Error:
        return []


def most_repeated_steps(events: list[AnyEvent]) -> int:
    """The largest number of steps that were repeated after one interruption."""
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
