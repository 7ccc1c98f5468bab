"""Run code that a model wrote in a sandboxed subprocess with resource limits.

Always: an isolated Python without site-packages and environment, in an empty folder; limits on CPU
time, memory, file size, open files, processes and core dumps; a timeout, after which the whole
session is killed; an audit hook that rejects writing files, sockets, processes and ctypes. Where
Linux allows this user to create them, also namespaces for processes (the end of the first one ends
all others), network (none), mounts (read-only) and IPC.

It does not protect against attacks on the kernel or the interpreter. Without namespaces (see
`isolation`) code that bypasses the audit hook could reach the network and the user's files. Files
that the user may read can be read in either case.
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
"""Timeout for code and tests together, wall-clock seconds."""
CPU_SECONDS = 2
MEMORY = 512 * 2**20
"""Address space of a process, bytes."""

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MAX_REPORT_BYTES = 4096


class Outcome(NamedTuple):
    """Outcome of a run; `detail` is the error, or the limit that stopped it."""

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
    """Run the code and then each test in the same namespace, in the sandbox.

    The result is "passed" if everything finished, "failed" if something raised, "stopped"
    if a limit was reached or the process exited. Nothing that the code does raises here.

    `hook` and `namespaces` (None: where available) switch single layers of isolation off, to test
    the others.
    """
    secret = secrets.token_hex(16)  # the code can't forge a report without it
    task = {
        "code": code,
        "tests": list(tests),
        "secret": secret,
        "cpu": CPU_SECONDS,
        "memory": MEMORY,
        "hook": hook,
        "namespaces": isolation() == "namespaces" if namespaces is None else namespaces,
    }
    with tempfile.TemporaryDirectory(prefix="gladius-code-") as folder:
        reading, writing = os.pipe()
        try:
            process = _start(folder, writing)
        finally:
            os.close(writing)
        try:
            return _outcome(process, json.dumps(task).encode(), reading, secret, seconds)
        finally:
            os.close(reading)
            _kill(process)


def _start(folder: str, report: int) -> subprocess.Popen[bytes]:
    # -I: no environment variables, user site or modules of this folder; -S: no site-packages.
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
    process: subprocess.Popen[bytes], task: bytes, reading: int, secret: str, seconds: float
) -> Outcome:
    """Send the task and read the report from the pipe `reading`, until the timeout."""
    assert process.stdin is not None
    try:
        process.stdin.write(task)
        process.stdin.close()
    except OSError:
        return Outcome("stopped", "it did not start")
    deadline = time.monotonic() + seconds
    report = b""
    while len(report) < _MAX_REPORT_BYTES:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return Outcome("stopped", f"it ran longer than {seconds:g} s")
        if not select.select([reading], [], [], remaining)[0]:
            continue
        data = os.read(reading, _MAX_REPORT_BYTES)
        if not data:
            break
        report += data
        if b"\n" in report:
            break
    head, _, rest = report.decode(errors="replace").partition(" ")
    if head != secret:
        return Outcome("stopped", "it exceeded a limit or exited")
    result, _, detail = rest.strip().partition(" ")
    if result == "passed":
        return Outcome("passed")
    return Outcome("stopped" if result == "stopped" else "failed", detail[:200])


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the session and, with namespaces, all processes in its process namespace."""
    for _ in range(3):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        time.sleep(0.001)
    process.kill()
    process.wait()


@functools.cache
def isolation() -> Literal["namespaces", "limits"]:
    """Whether this user may create namespaces on this system, or only limits apply."""
    if not sys.platform.startswith("linux"):
        return "limits"
    probe = [sys.executable, "-I", "-S", "-B", str(_CHILD), "probe"]
    try:
        result = subprocess.run(probe, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "limits"
    return "namespaces" if result.returncode == 0 else "limits"
