"""The app in a real terminal: however it exits, the terminal is restored and the job runs on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.run.control import running_jobs
from engine.run.lock import lock_owner
from engine.run.state import read_state
from engine.workspace import Workspace
from tests.support.driving import REPO, TOY
from tests.support.terminal import Terminal


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="gt-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
        workspace = Workspace.find(tmp_path)
        workspace.create()
        yield workspace


@pytest.fixture
def job(ws: Workspace) -> Iterator[subprocess.Popen]:
    """A run that does not end."""
    process = subprocess.Popen(
        [
            sys.executable,
            str(TOY),
            str(ws.root),
            json.dumps({"seconds": 0.02}),
            "--quiet",
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while lock_owner(ws, "train") is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def terminal(ws: Workspace) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*argv: str, **options) -> Terminal:
        opened.append(Terminal("--root", str(ws.root), *argv, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def keeps_running(ws: Workspace, steps: int = 20) -> bool:
    """Whether the run does this many more steps."""
    start = read_state(ws).step
    deadline = time.monotonic() + 20
    while read_state(ws).step < start + steps:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_q_asks_and_leaves_the_job_running(ws, job, terminal):
    app = terminal("dashboard")
    app.wait_for("training")
    app.press("q")
    app.wait_for("Leave it running")
    app.press("\r")
    assert app.end() == 0
    assert app.is_sane() and keeps_running(ws)
    summary = app.output.rpartition(b"\x1b[?1049l")[2].decode()
    assert "The training is still running (pid" in summary and "dashboard  to watch it" in summary


def test_ctrl_c_twice_stops_the_job_with_a_checkpoint(ws, job, terminal):
    app = terminal("models")
    app.wait_for("training")
    app.press("\x03")
    app.wait_for("Stop with a checkpoint")
    app.press("\x03")
    assert app.end() == 0
    assert app.is_sane() and running_jobs(ws) == []
    state = read_state(ws)
    assert state.status == "stopped" and state.last_checkpoint_step == state.step > 0


def test_ctrl_c_without_a_job_quits(ws, terminal):
    app = terminal("models")
    app.wait_for("Qwen")
    app.press("\x03")
    assert app.end() == 0 and app.is_sane()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_app_cleanly_and_not_the_job(ws, job, terminal, number):
    app = terminal("dashboard")
    app.wait_for("training")
    os.kill(app.pid, number)
    assert app.end() == 128 + number
    assert app.is_sane() and keeps_running(ws)
    assert b"Traceback" not in app.output


def test_a_closed_terminal_ends_the_app_and_not_the_job(ws, job, terminal):
    app = terminal("dashboard")
    app.wait_for("training")
    app.hang_up()
    assert app.end() == 128 + signal.SIGHUP
    assert keeps_running(ws)


def test_a_terminal_that_is_lost_without_a_signal_ends_the_app_too(ws, job, terminal):
    app = terminal("dashboard", controls=False)
    app.wait_for("training")
    app.hang_up()
    assert app.end() == 128 + signal.SIGHUP
    assert keeps_running(ws)


def test_kill_9_of_the_app_leaves_the_job_and_a_new_app_attaches(ws, job, terminal):
    app = terminal("dashboard")
    app.wait_for("training")
    os.kill(app.pid, signal.SIGKILL)
    assert app.end() == -signal.SIGKILL
    assert keeps_running(ws)
    second = terminal("dashboard")
    second.wait_for("training")


def test_the_screen_shows_why_a_run_cant_start(ws, terminal):
    app = terminal("train", "--preset", "nano")
    app.wait_for("no expert is ready")
    app.press("q")
    assert app.end() == 0 and app.is_sane()


def test_without_a_terminal_on_every_stream_it_prints(ws):
    answer = subprocess.run(
        [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), "models"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0 and "\x1b" not in answer.stdout
