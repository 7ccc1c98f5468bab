"""Owns running code that a model wrote, apart from everything of ours: in a process of its own,
with limits, and behind the walls that this system has.

Always: an isolated Python without site-packages and environment, in an empty folder; limits of
processor time, memory, file size, open files and core; a wall clock, after which the whole session
is killed; an audit hook that refuses files for writing, sockets, processes and ctypes. Where Linux
allows it to this user: namespaces of its own for processes (the end of the first ends all others,
however they hid), network (there is none), mounts (everything is read-only) and IPC.

What it is not: a wall against somebody who attacks the kernel or the interpreter. Without
namespaces (`walls` says which there are) a program that gets round the audit hook could reach the
network and the user's files; files that the user may read can be read in either case.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

SECONDS = 4.0
"""Wall clock for code and tests together."""
CPU_SECONDS = 2
MEMORY = 512 * 2**20
"""Address space of each process, bytes."""

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MOST_OUTPUT = 4096


class Outcome(NamedTuple):
    """How a run ended. `detail` is the error's last line, or which limit it met."""

    result: Literal["passed", "failed", "stopped"]
    detail: str = ""


def run(
    code: str,
    tests: Sequence[str] = (),
    seconds: float = SECONDS,
    *,
    hook: bool = True,
    namespaces: bool | None = None,
) -> Outcome:
    """Run the code, then each test after it, in the sandbox.

    "passed": all came to their end. "failed": something raised. "stopped": a limit was met, or the
    process ended itself. Never raises for what the code does. `hook` and `namespaces` (None: where
    they can be had) are walls that tests take away, to see what each of them holds.
    """
    word = secrets.token_hex(16)  # what only the harness, not the code's output, can say
    task = {
        "code": code,
        "tests": list(tests),
        "word": word,
        "cpu": CPU_SECONDS,
        "memory": MEMORY,
        "hook": hook,
        "namespaces": walls() == "namespaces" if namespaces is None else namespaces,
    }
    with tempfile.TemporaryDirectory(prefix="gladius-code-") as folder:
        reading, writing = os.pipe()
        try:
            process = _start(folder, writing)
        finally:
            os.close(writing)
        try:
            return _outcome(process, json.dumps(task).encode(), reading, word, seconds)
        finally:
            os.close(reading)
            _end(process)


def _start(folder: str, report: int) -> subprocess.Popen[bytes]:
    # -I: no environment, no user's site, not this folder's modules; -S: no site-packages.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD), str(report)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"LANG": "C.UTF-8"},
        pass_fds=(report,),
        start_new_session=True,
    )


def _outcome(
    process: subprocess.Popen[bytes], task: bytes, reading: int, word: str, seconds: float
) -> Outcome:
    assert process.stdin is not None
    try:
        process.stdin.write(task)
        process.stdin.close()
    except OSError:
        return Outcome("stopped", "it did not start")
    deadline = time.monotonic() + seconds
    said = b""
    while len(said) < _MOST_OUTPUT:
        left = deadline - time.monotonic()
        if left <= 0:
            return Outcome("stopped", f"it ran longer than {seconds:g} s")
        if not select.select([reading], [], [], left)[0]:
            continue
        data = os.read(reading, _MOST_OUTPUT)
        if not data:
            break
        said += data
        if b"\n" in said:
            break
    head, _, rest = said.decode(errors="replace").partition(" ")
    if head != word:
        return Outcome("stopped", "a limit ended it")
    result, _, detail = rest.strip().partition(" ")
    if result == "passed":
        return Outcome("passed")
    return Outcome("stopped" if result == "stopped" else "failed", detail[:200])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left: the session, and (with namespaces) everything below its first process."""
    for _ in range(3):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        time.sleep(0.001)
    process.kill()
    process.wait()


@functools.cache
def walls() -> Literal["namespaces", "limits"]:
    """What holds here besides the limits: namespaces, where this user may make them."""
    if not sys.platform.startswith("linux"):
        return "limits"
    probe = [sys.executable, "-I", "-S", "-B", str(_CHILD), "probe"]
    try:
        ended = subprocess.run(probe, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "limits"
    return "namespaces" if ended.returncode == 0 else "limits"
