"""Whatever is killed, no process, semaphore, temporary file or folder stays behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from engine.events import StepDone
from engine.run.leftovers import remove_leftovers
from engine.run.log import TextLog
from engine.workspace import Workspace, runtime_dir
from tests.support.waiting import gone, until


def recorded_semaphores(ws: Workspace) -> list[Path]:
    """The queue's semaphores, as the runner has recorded them."""
    (record,) = ws.tmp.glob(".semaphores-*")
    return [Path("/dev/shm", f"sem.{name[1:]}") for name in record.read_text().split()]


def test_a_suspended_worker_dies_with_its_runner(host):
    running = host()
    running.wait_for(StepDone, 2)
    worker, runner = running.worker_pid(), running.process.pid
    os.kill(worker, signal.SIGSTOP)
    os.kill(runner, signal.SIGKILL)
    until(lambda: gone(worker), 10)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="semaphores are no files here")
def test_semaphores_of_killed_processes_are_deleted_at_the_next_start(ws, host):
    running = host()
    running.wait_for(StepDone, 2)
    left = recorded_semaphores(ws)
    family = [running.process.pid]
    family += [child.pid for child in psutil.Process(running.process.pid).children(recursive=True)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # the resource tracker would delete them
        for pid in family:
            os.kill(pid, number)
    until(lambda: all(map(gone, family)), 10)
    assert len(left) == 3 and all(path.exists() for path in left)
    running = host()
    running.wait_for(StepDone, 2)
    assert not any(path.exists() for path in left)
    own = recorded_semaphores(ws)
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.wait(20)
    assert not any(path.exists() for path in own)
    assert not list(ws.tmp.glob(".semaphores-*"))


def test_temporary_files_of_a_killed_process_are_deleted_at_the_next_start(ws, host):
    ws.create()
    dead, alive = 4_190_000, os.getpid()
    leftovers = [
        ws.checkpoints_dir / f".training_state.json.{dead}-7.tmp",
        ws.tmp / f".train.lock.{dead}-7.tmp",
        ws.checkpoints_dir / f".probe-{dead}",
    ]
    kept = [ws.checkpoints_dir / f".training_state.json.{alive}-7.tmp", ws.tmp / ".mine.tmp"]
    for path in (*leftovers, *kept):
        path.write_text("x")
    running = host()
    running.wait_for(StepDone, 1)
    assert not [path for path in leftovers if path.exists()]
    assert not [path for path in kept if not path.exists()]
    remove_leftovers(ws)
    assert kept[0].exists()


def test_the_folder_of_the_socket_is_deleted_at_the_end(ws, host):
    from engine.run.lock import lock_owner

    running = host()
    running.wait_for(StepDone, 1)
    owner = lock_owner(ws, "train")
    assert owner is not None
    folder = Path(owner.socket).parent
    assert folder.is_dir()
    os.kill(running.process.pid, signal.SIGTERM)
    running.process.wait(20)
    assert not folder.exists()


@pytest.mark.parametrize("folder", ["relative", "/proc/none", "{file}", "/" + "x" * 80])
def test_an_unusable_runtime_folder_is_passed_over(tmp_path, monkeypatch, folder):
    import tempfile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "relative").mkdir()
    (tmp_path / "file").write_text("")
    chosen = folder.format(file=tmp_path / "file")
    monkeypatch.setenv("XDG_RUNTIME_DIR", chosen)
    found = runtime_dir(tmp_path)
    try:
        assert found.is_absolute() and found.parent.parent == Path(tempfile.gettempdir())
        assert not list((tmp_path / "relative").iterdir())
    finally:
        found.rmdir()


def test_the_log_is_split_by_size_and_old_parts_are_deleted(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    log = TextLog(ws, "train", max_bytes=10_000)
    with open(ws.log_file(), "ab", buffering=0) as worker:  # has it open all the time
        for n in range(1000):
            log.line(f"line {n} " + "x" * 80)
            worker.write(b"a traceback\n")
    files = sorted(ws.logs_dir.glob("training_*.log"))
    assert len(files) == 5 and sum(path.stat().st_size for path in files) < 60_000
    assert "line 999" in ws.log_file().read_text()
    day = ws.log_file().stem
    assert {path.name for path in files} == {
        f"{day}.log",
        *(f"{day}.{n}.log" for n in range(1, 5)),
    }
