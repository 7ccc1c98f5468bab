"""A disk that is full, or turned read-only: the job waits, and continues when there is room."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from engine.events import GuardTripped, RunPaused, Stop
from engine.run.disk import RETRY_VARIABLE, full_disk_error, retry_when_full
from engine.run.job import JobContext
from tests.support.paths import REPO
from tests.support.small_run import KeepingLink

_ON_A_SMALL_DISK = """
import os, subprocess, sys, threading, time
from pathlib import Path
from engine.run.disk import retry_when_full
from engine.run.job import JobContext
from engine.workspace import append_line, write_bytes

class Link:
    # tests.support.small_run has one, but imports torch.
    def __init__(self):
        self.events = []
        self.emit = self.events.append

    def poll(self):
        return []

    def heartbeat(self, activity=""):
        pass

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
link = Link()
ctx = JobContext(link)

def later(work):
    threading.Timer(0.4, work).start()

(disk / "filler").write_bytes(b"x" * (1 << 20))
later((disk / "filler").unlink)
retry_when_full(ctx, lambda: write_bytes(disk / "a", b"y" * 4096), what="a", step=7)
assert (disk / "a").read_bytes() == b"y" * 4096

def remount(mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)

remount("ro")
later(lambda: remount("rw"))
retry_when_full(ctx, lambda: append_line(disk / "b", b"line"), what="b")
assert (disk / "b").read_bytes() == b"line\\n"
assert sorted(os.listdir(disk)) == ["a", "b"]
assert 0.4 < ctx.paused_seconds < 30
print([getattr(event, "reason", "") or getattr(event, "action", "") for event in link.events])
"""


def _has_namespaces() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not _has_namespaces(), reason="this system has no user namespaces")
def test_a_job_waits_while_its_disk_is_full_or_read_only(tmp_path, monkeypatch):
    monkeypatch.setenv(RETRY_VARIABLE, "0.1")
    command = ["unshare", "-rm", sys.executable, "-c", _ON_A_SMALL_DISK, str(tmp_path)]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "a can't be written: no space left on device; the run is paused" in result.stdout
    assert "b can't be written: read-only file system" in result.stdout


def test_other_errors_are_raised_and_a_stop_ends_the_wait(monkeypatch):
    monkeypatch.setenv(RETRY_VARIABLE, "0.01")

    def fail(number: int) -> None:
        raise OSError(number, "")

    link = KeepingLink()
    with pytest.raises(OSError):
        retry_when_full(JobContext(link), lambda: fail(errno.EACCES), what="x")
    assert not link.events
    link = KeepingLink(lambda event: [Stop()] if isinstance(event, RunPaused) else [])
    with pytest.raises(OSError):
        retry_when_full(JobContext(link), lambda: fail(errno.ENOSPC), what="x", step=3)
    assert [type(event) for event in link.events] == [GuardTripped, RunPaused]
    assert {event.step for event in link.events} == {3}


def test_errors_of_libraries_are_recognised():
    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert full_disk_error(RuntimeError(text)) == errno.ENOSPC
    try:
        raise ValueError("x") from OSError(errno.EROFS, "")
    except ValueError as error:
        assert full_disk_error(error) == errno.EROFS
    assert full_disk_error(OSError(errno.EACCES, "")) is None
