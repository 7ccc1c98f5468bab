"""An interrupted and resumed run equals an undisturbed one, bit for bit, with real signals."""

from __future__ import annotations

import os
import random
import signal

import pytest

from engine.events import GuardTripped
from engine.hardware import has_bf16
from tests.support.program import Root, Running
from tests.support.waiting import gone, until

STEPS = 60
FIELDS = {
    "max_steps": STEPS,
    "checkpoint__interval_steps": 7,
    "schedule__eval_interval": 12,
    # longer steps, so that a signal arrives well before the end
    "student__hidden_size": 64,
    "student__max_position_embeddings": 256,
    "optimizer__max_seq_len": 256,
    "optimizer__global_batch_size": 8,
}


def trace_of_an_undisturbed_run(make_root, precision: str) -> dict[str, object]:
    root: Root = make_root(f"undisturbed-{precision}")
    result = root.run("--no-ui", *root.training(**FIELDS, device__precision=precision))
    assert result.returncode == 0, result.stderr
    return root.trace(STEPS)


@pytest.fixture(scope="module")
def undisturbed(make_root) -> dict[str, object]:
    """The trace of an undisturbed run, in bf16 where the CPU supports it."""
    return trace_of_an_undisturbed_run(make_root, "auto")


def random_steps(count: int) -> list[int]:
    """Increasing steps at about which to interrupt; printed when the test fails."""
    steps = [random.randint(1 + 16 * n, 9 + 16 * n) for n in range(count)]
    print(f"interrupted at about steps {steps}")
    return steps


def test_ctrl_c_sigterm_and_resume_change_nothing(root, undisturbed):
    first, second = random_steps(2)
    running = root.start(*root.training(**FIELDS)).reach(first)
    assert running.end(signal.SIGINT) == 130
    stopped_at = root.saved_steps()[-1]
    assert first <= stopped_at < STEPS

    running = root.start("resume").reach(max(second, stopped_at + 1))
    assert min(running.steps()) == stopped_at + 1
    assert running.end(signal.SIGTERM) == 143
    assert root.saved_steps()[-1] < STEPS

    assert root.start("resume").end() == 0
    assert root.trace(STEPS) == undisturbed


@pytest.mark.slow
def test_kill_9_of_the_worker_and_of_the_runner_changes_nothing(root, undisturbed):
    first, second = random_steps(2)
    running = root.start(*root.training(**FIELDS)).reach(first)
    kill_worker(running)
    guards = [e for e in running.events() if isinstance(e, GuardTripped)]
    assert [e.guard for e in guards] == ["worker"] and "restarting 1 of 3" in guards[0].action

    running.reach(max(second, running.steps()[-1] + 1))
    worker = running.worker_pid()
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: gone(worker), 10)  # the worker ends with its runner
    assert root.status() == "failed"

    assert root.start("resume").end() == 0
    assert root.trace(STEPS) == undisturbed


@pytest.mark.skipif(not has_bf16(), reason="device.precision=auto is fp32 here: tested above")
def test_interruptions_change_nothing_in_fp32(root, make_root):
    first, second = random_steps(2)
    fields = {**FIELDS, "device__precision": "fp32"}
    running = root.start(*root.training(**fields)).reach(first)
    kill_worker(running)
    running.reach(max(second, running.steps()[-1] + 1))
    assert running.end(signal.SIGINT) == 130
    assert root.start(*root.training(**fields)).end() == 0  # `train` continues the run too
    assert root.trace(STEPS) == trace_of_an_undisturbed_run(make_root, "fp32")


def kill_worker(running: Running) -> None:
    """Kill the worker and wait for the one that replaces it."""
    worker = running.worker_pid()
    os.kill(worker, signal.SIGKILL)
    until(lambda: running.worker_pid() != worker)
