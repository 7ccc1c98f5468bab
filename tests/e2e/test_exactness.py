"""A run that was interrupted is the run that was not: bit by bit, with real signals."""

from __future__ import annotations

import os
import random
import signal

import pytest
from program import Root, gone, until

from engine.hardware import has_bf16
from engine.run.events import GuardTripped

STEPS = 60
FIELDS = {
    "max_steps": STEPS,
    "checkpoint__interval_steps": 7,
    "schedule__eval_interval": 12,
    # longer steps, so that a signal strikes well before the end
    "student__hidden_size": 64,
    "student__max_position_embeddings": 256,
    "optimizer__max_seq_len": 256,
    "optimizer__rows_per_step": 8,
}


@pytest.fixture(scope="module", params=["auto", "fp32"])
def precision(request) -> str:
    if request.param == "auto" and not has_bf16():
        pytest.skip("this processor has no bf16 products: auto is fp32 here")
    return request.param


@pytest.fixture(scope="module")
def undisturbed(make_root, precision) -> dict[str, object]:
    """The trace of a run that nobody touched."""
    root: Root = make_root(f"undisturbed-{precision}")
    result = root.run("--no-ui", *root.training(**FIELDS, device__precision=precision))
    assert result.returncode == 0, result.stderr
    return root.trace(STEPS)


def moments(count: int) -> list[int]:
    """Steps, in order, at about which to strike; printed when the test fails."""
    steps = [random.randint(1 + 12 * n, 8 + 12 * n) for n in range(count)]
    print(f"interrupted at about steps {steps}")
    return steps


def test_ctrl_c_sigterm_and_resume_change_nothing(root, undisturbed, precision):
    first, second = moments(2)
    running = root.start(*root.training(**FIELDS, device__precision=precision)).reach(first)
    assert running.end(signal.SIGINT) == 130
    stopped_at = root.saved_steps()[-1]
    assert first <= stopped_at < STEPS

    running = root.start("resume").reach(max(second, stopped_at + 1))
    assert min(running.steps()) == stopped_at + 1
    assert running.end(signal.SIGTERM) == 143
    assert root.saved_steps()[-1] < STEPS

    assert root.start("resume").end() == 0
    assert root.trace(STEPS) == undisturbed


def test_kill_9_of_the_worker_and_of_the_runner_change_nothing(root, undisturbed, precision):
    first, second, third = moments(3)
    running = root.start(*root.training(**FIELDS, device__precision=precision)).reach(first)
    worker = running.worker_pid()
    os.kill(worker, signal.SIGKILL)
    until(lambda: running.worker_pid() != worker)  # the runner starts another by itself
    guards = [e for e in running.events() if isinstance(e, GuardTripped)]
    assert [e.guard for e in guards] == ["worker"] and "restarting 1 of 3" in guards[0].action

    running.reach(second)
    worker = running.worker_pid()
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: gone(worker), 10)  # no orphan trains on unseen
    assert root.status() == "failed"

    running = root.start("resume").reach(third)
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert root.start("resume").end() == 0
    assert root.trace(STEPS) == undisturbed
