"""Commands from a second terminal on a running job, and the nohup recipe of the docs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from engine.events import (
    CheckpointRejected,
    CheckpointSaved,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    decode_event,
)
from engine.run.state import read_state
from tests.support.program import LAUNCHER, Root
from tests.support.waiting import until


def acknowledgement(root: Root, *command: str):
    """The event that acknowledges a command."""
    result = root.run("--json", *command)
    assert result.returncode == 0, result.stderr
    (line,) = result.stdout.splitlines()
    return decode_event(line)


def test_commands_from_a_second_terminal_act_on_the_running_job(root):
    running = root.start(*root.training()).reach(3)
    following = root.start("dashboard", "--follow")
    until(following.steps)

    until(lambda: f"training (pid {running.pid})" in root.run("status").stdout)
    until(lambda: read_state(root.ws).step >= 3)  # written once a second
    status = json.loads(root.run("status", "--json").stdout)
    assert status["status"] == "training" and status["step"] >= 3

    line = root.error_of(75, *root.training())
    assert f"pid {running.pid}" in line
    assert str(running.pid) in root.error_of(75, "resume")

    paused = acknowledgement(root, "pause")
    assert isinstance(paused, RunPaused) and paused.step == running.steps()[-1]
    assert json.loads(root.run("status", "--json").stdout)["status"] == "paused"
    saved = acknowledgement(root, "checkpoint")
    assert isinstance(saved, CheckpointSaved) and saved.step == paused.step
    assert root.checkpoint(saved.step).is_dir()
    time.sleep(0.5)
    assert running.steps()[-1] == paused.step  # no further step while paused

    resumed = acknowledgement(root, "resume")
    assert isinstance(resumed, RunResumed) and resumed.step == paused.step
    running.reach(paused.step + 3)
    saved = acknowledgement(root, "checkpoint")
    assert isinstance(saved, CheckpointSaved) and saved.reason == "asked"
    assert root.checkpoint(saved.step).is_dir()

    stopped = acknowledgement(root, "stop")
    assert isinstance(stopped, RunEnded) and stopped.status == "stopped"
    assert running.end() == 0
    assert root.saved_steps()[-1] == stopped.step == running.steps()[-1]

    assert following.end() == 0
    seen = following.events()
    assert seen[-1] == running.events()[-1]
    assert [e.seq for e in seen] == list(range(seen[0].seq, seen[-1].seq + 1))

    running = root.start("resume").reach(stopped.step + 2)
    finished = acknowledgement(root, "stop", "--finish")
    assert isinstance(finished, RunEnded) and finished.status == "completed"
    assert running.end() == 0
    assert finished.step < 10_000 and (root.ws.model_dir / "model.safetensors").is_file()
    rates = [e.lr for e in running.events() if isinstance(e, StepDone)]
    assert rates[-1] < rates[0]
    assert root.status() == "completed"


@pytest.fixture(scope="module")
def nohup(make_root) -> tuple[Root, str]:
    """The root after the recipe, and the output of its shell."""
    root: Root = make_root("nohup")
    (root.path / "gladius_train").symlink_to(LAUNCHER)
    words = root.training(checkpoint__interval_steps=5)
    arguments = " ".join(f"'{word}'" for word in words)
    script = f"""
nohup ./gladius_train {arguments} > log 2>&1 & echo $! > training.pid
until grep -q 'step 10 ' log; do sleep 0.1; done
tail -n 30 log
kill $(cat training.pid)
wait $(cat training.pid)
echo "exit $?"
"""
    environment = {name: value for name, value in os.environ.items() if name != "GLADIUS_ROOT"}
    shell = subprocess.Popen(
        ["bash", "-c", script],
        cwd=root.path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=90)
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    return root, output


@pytest.fixture
def ended(nohup, tmp_path, expert, text) -> Root:
    """A copy of that root, to damage."""
    shutil.copytree(nohup[0].path, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Root(tmp_path, expert, text)


def test_the_recipe_with_nohup_ends_with_a_checkpoint_and_143(nohup):
    root, output = nohup
    assert "loss" in output and output.splitlines()[-1] == "exit 143"
    assert root.saved_steps()[-1] >= 10 and root.status() == "stopped"
    assert "stopped at step" in (root.path / "log").read_text()


def test_sigterm_before_the_first_step_stops_the_run(root):
    running = root.start(*root.training())
    until(lambda: any(isinstance(e, RunStarted) for e in running.events()))
    assert running.end(signal.SIGTERM) == 143
    (end,) = [e for e in running.events() if isinstance(e, RunEnded)]
    assert end.status == "stopped" and root.status() == "stopped"


def test_resume_continues_after_the_recipe(ended):
    last = ended.saved_steps()[-1]
    running = ended.start("resume", "--set", f"schedule.max_steps={last + 5}")
    assert running.end() == 0, running.errors.read_text()
    assert running.steps() == list(range(last + 1, last + 6))


def test_a_checkpoint_with_a_flipped_bit_is_moved_aside_and_the_previous_one_is_used(ended):
    previous, last = ended.saved_steps()[-2:]
    flip_a_bit(ended.checkpoint(last) / "optimizer.safetensors")
    running = ended.start("resume", "--set", f"schedule.max_steps={previous + 3}")
    assert running.end() == 0, running.errors.read_text()
    (rejected,) = [e for e in running.events() if isinstance(e, CheckpointRejected)]
    assert rejected.path == str(ended.checkpoint(last)) and "optimizer" in rejected.reason
    assert running.steps()[0] == previous + 1
    (aside,) = ended.ws.checkpoints_dir.glob("rejected-*")
    assert rejected.moved_to == str(aside) and (aside / "optimizer.safetensors").is_file()


def test_nothing_is_deleted_where_no_checkpoint_verifies(ended):
    steps = ended.saved_steps()
    for step in steps:
        flip_a_bit(ended.checkpoint(step) / "model.safetensors")
    line = ended.error_of(3, "resume")
    assert "no checkpoint" in line and "train" in line
    aside = sorted(ended.ws.checkpoints_dir.glob("rejected-*"))
    assert len(aside) == len(steps)
    assert all((path / "model.safetensors").is_file() for path in aside)


def test_a_checkpoint_of_another_config_is_not_resumed(ended):
    line = ended.error_of(2, "resume", "--set", "optimizer.lr=0.1")
    assert "optimizer.lr is 0.002, requested 0.1" in line and "--fresh" in line
    line = ended.error_of(2, *ended.training(student__hidden_size=64))
    assert "student.hidden_size is 32, requested 64" in line and "--fresh" in line


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
