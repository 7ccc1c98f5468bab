"""A second process steers and watches a running job."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest

from engine.errors import GladiusError, MissingError
from engine.events import (
    Checkpoint,
    CheckpointSaved,
    Heartbeat,
    Pause,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    Stop,
)
from engine.run import control
from engine.run.lock import lock_owner
from engine.run.state import read_state
from tests.support.hosting import TOY, status
from tests.support.paths import REPO
from tests.support.toy_job import ToyConfig
from tests.support.waiting import until


def test_commands_are_acknowledged_with_the_step(ws, host):
    running = host()
    running.wait_for(StepDone, 3)
    with running.attach() as viewer:
        saved = viewer.send(Checkpoint(), timeout=10)
        assert isinstance(saved, CheckpointSaved) and saved.reason == "asked" and saved.step >= 3
        paused = viewer.send(Pause(), timeout=10)
        assert isinstance(paused, RunPaused) and paused.step >= saved.step and paused.seq > 0
        until(lambda: status(ws) == "paused", 3)
        # Already paused: answered at once, by the event that paused it.
        assert viewer.send(Pause(), timeout=10) == paused
        saved = viewer.send(Checkpoint(), timeout=10)
        assert isinstance(saved, CheckpointSaved) and saved.step == paused.step
        assert read_state(ws).step == paused.step
        resumed = viewer.send(Resume(), timeout=10)
        assert isinstance(resumed, RunResumed) and resumed.step == paused.step
        again = viewer.send(Resume(), timeout=10)
        assert isinstance(again, RunResumed) and again.step >= paused.step
        until(lambda: status(ws) == "training", 3)
        ended = viewer.send(Stop(), timeout=10)
        assert isinstance(ended, RunEnded) and ended.status == "stopped"
    assert running.end() == 0
    assert status(ws) == "stopped"


def test_a_command_can_come_from_another_process(ws, host):
    running = host()
    running.wait_for(StepDone, 3)
    program = (
        "from engine.run import control; from engine.events import *;"
        "from engine.workspace import Workspace;"
        f"print(control.attach(Workspace.find({str(ws.root)!r})).send(Stop()).step)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, timeout=20, check=True
    )
    assert running.end() == 0
    assert int(answer.stdout) == running.events()[-1].step


def test_a_worker_that_dies_while_paused_comes_back_paused(ws, host):
    running = host()
    running.wait_for(StepDone, 12)
    with running.attach() as viewer:
        viewer.send(Pause(), timeout=10)
        os.kill(running.worker_pid(), signal.SIGKILL)
        again = running.wait_for(RunPaused, 2)
        assert running.wait_for(RunStarted, 2).attempt == 2
        time.sleep(0.3)
        assert read_state(ws).step == again.step and status(ws) == "paused"
        assert isinstance(viewer.send(Resume(), timeout=10), RunResumed)
        running.wait_for(StepDone, 20)


def test_a_command_to_a_suspended_worker_times_out_and_is_carried_out_later(host):
    running = host()
    running.wait_for(StepDone, 3)
    worker = running.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    with running.attach() as viewer:
        with pytest.raises(GladiusError, match="no answer to pause within"):
            viewer.send(Pause(), timeout=0.3)
        os.kill(worker, signal.SIGCONT)
        assert isinstance(viewer.send(Pause(), timeout=10), RunPaused)


def test_viewers_lose_no_event_and_see_none_twice(host, history):
    running = host(ToyConfig(steps=3000, seconds=0.0005, save_every=500))
    running.wait_for(RunStarted)
    seen: dict[int, list[int]] = {}

    def watch(number: int, after_seq: int) -> None:
        with running.attach(after_seq) as viewer:
            seen[number] = [event.seq for event in viewer.events()]
            assert viewer.ended

    watchers = []
    for number in range(6):
        after = 0 if number < 5 else 100
        watchers.append(threading.Thread(target=watch, args=(number, after)))
        watchers[-1].start()
        time.sleep(0.1)
    for watcher in watchers:
        watcher.join(30)
    assert running.end() == 0
    record = history.last_run("train")
    assert record is not None
    everything = list(range(1, record.last_seq + 1))
    assert everything == [e.seq for e in running.events()]
    for number in range(5):
        assert seen[number] == everything
    assert seen[5] == everything[100:]


def test_a_slow_viewer_is_caught_up_from_the_history_and_slows_nobody(host):
    running = host(ToyConfig(steps=20_000, seconds=0.0, save_every=10_000))
    with running.attach(after_seq=0) as viewer:
        first = next(iter(viewer.events(timeout=10)))
        assert running.end(60) == 0  # megabytes of events later
        rest = [event.seq for event in viewer.events(timeout=10)]
    assert [first.seq, *rest] == [e.seq for e in running.events()]


def test_attaching_from_now_on_shows_no_past_and_no_heartbeat(host):
    running = host()
    last = running.wait_for(StepDone, 20)
    with running.attach() as viewer:
        seen = []
        for event in viewer.events(timeout=5):
            seen.append(event)
            if len(seen) == 20:
                break
        assert seen[0].seq > last.seq
        assert [e.seq for e in seen] == list(range(seen[0].seq, seen[0].seq + 20))
        viewer.send(Pause(), timeout=10)
        rest = list(viewer.events(timeout=1.5))  # the paused worker beats once a second
        assert any(isinstance(e, RunPaused) for e in rest)
        assert not any(isinstance(e, Heartbeat) for e in rest)
        assert not viewer.ended


def test_without_a_runner_there_is_nothing_to_attach_to(ws):
    with pytest.raises(MissingError, match="no train job runs"):
        control.attach(ws)
    assert control.running_jobs(ws) == []


def test_running_jobs_names_the_live_ones(ws, host):
    running = host()
    running.wait_for(StepDone)
    assert control.running_jobs(ws) == ["train"]
    os.kill(running.pid, signal.SIGKILL)
    running.end()
    assert control.running_jobs(ws) == []


def test_the_socket_is_for_its_owner_only_and_survives_nonsense(ws, host):
    running = host()
    running.wait_for(StepDone)
    owner = lock_owner(ws, "train")
    assert owner is not None
    found = os.stat(owner.socket)
    assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600
    for nonsense in (b"\x80\x04pickle\n", b'{"type":"ask"}\n', b"x" * 100_000):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(owner.socket)
            stranger.settimeout(5)
            stranger.sendall(nonsense)
            try:
                assert stranger.recv(100) == b""
            except ConnectionResetError:
                pass
    with running.attach() as viewer:
        assert isinstance(viewer.send(Pause(), timeout=10), RunPaused)


def test_a_broken_output_turns_printing_off_and_nothing_else(ws):
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(ws.root), json.dumps({"steps": 60})],
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    os.close(writing)
    os.read(reading, 100)
    os.close(reading)
    process.wait(20)
    assert (read_state(ws).status, read_state(ws).step) == ("completed", 60)
    assert "printing is turned off" in ws.log_file().read_text()


def test_a_blocked_output_does_not_block_the_run(ws):
    reading, writing = os.pipe()  # nobody reads it: it is full after 64 KiB
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(ws.root), '{"seconds": 0.001}'],
        stdout=writing,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    os.close(writing)
    until(lambda: read_state(ws).step > 500)
    with control.attach(ws) as viewer:
        assert isinstance(viewer.send(Stop(), timeout=10), RunEnded)
    until(lambda: control.running_jobs(ws) == [])
    os.close(reading)
    process.wait(20)


MALFORMED = {
    "not UTF-8": b'{"type":"watch\xff\xfe"}\n',
    "a surrogate": b'{"type":"ask","command":{"command":"\\ud800"}}\n',
    "deep nesting": b'{"type":"ask","command":' + b"[" * 30_000 + b"]" * 30_000 + b"}\n",
    "of other types": b'{"type":"ask","command":7}\n[]\nnull\n"watch"\n',
    "an unknown command": b'{"type":"ask","command":{"command":"format"}}\n',
    "a number out of range": b'{"type":"ask","command":{"command":"stop","signal":1e999}}\n',
    "a huge line": b"x" * 200_000,
    "many requests": b'{"type":"ask","command":{"command":"checkpoint"}}\n' * 1000,
    "half a line": b'{"type":"wa',
    "empty lines": b"\n\n\n",
    "zeros": b"\0" * 1000 + b"\n",
}


def test_no_input_on_the_socket_ends_the_control_thread(ws, host):
    """Nor what hypothesis makes up; the job can be paused afterwards."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    running = host()
    running.wait_for(StepDone, 1)
    path = lock_owner(ws, "train").socket

    def send(data: bytes) -> None:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(5)
            peer.connect(path)
            with contextlib.suppress(OSError):  # it may be dropped while it still sends
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=300), st.sampled_from([b"", b'{"type":"ask","command":', b"{"]))
    def fuzz(data: bytes, head: bytes) -> None:
        send(head + data + b"\n")

    for data in MALFORMED.values():
        send(data)
    fuzz()
    with running.attach() as viewer:
        assert isinstance(viewer.send(Pause(), timeout=10), RunPaused)
        assert isinstance(viewer.send(Resume(), timeout=10), RunResumed)


def test_a_runner_that_sends_no_messages_is_reported(ws, tmp_path):
    """Such as one of another version: a viewer gets a line, not a traceback."""
    from engine.run.lock import hold_lock

    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b'{"type":"hello\xff"}\n')
            connection.close()

        ws.create()
        with hold_lock(ws, "train", str(path)):
            threading.Thread(target=answer, daemon=True).start()
            with pytest.raises(GladiusError, match="this version can't read"):
                control.attach(ws)
