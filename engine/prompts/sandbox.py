"""Run code that a model wrote in a sandboxed subprocess with resource limits.

Always: an isolated Python without site-packages and environment, in an empty folder; limits on CPU
time, memory, file size, open files, processes and core dumps; a timeout, after which the whole
session is killed; an audit hook that rejects writing files, sockets, processes and ctypes; an end
with the process that started it.

And at least one of these, else the code is not run (see `isolation`):

- namespaces for processes (the end of the first one ends all others), network (none), mounts
  (read-only) and IPC, where Linux lets this user create them;
- a filter that allows only the system calls of a computation: no process, signal, socket or change
  of a file. Landlock restricts reading to the standard library; without it, no file is opened.

The verdict is made outside: the code returns values, which are compared with what is expected here
(`sandbox_tests`). It does not protect against attacks on the kernel.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from engine.foreign_text import shown
from engine.prompts.sandbox_tests import Failed, SplitTest, UnsafeTest, decode_value, split_test

SECONDS = 4.0
"""Timeout for code and tests together, wall-clock seconds."""
CPU_SECONDS = 2
MEMORY = 512 * 2**20
"""Address space of a process, bytes."""

_CHILD = Path(__file__).with_name("sandbox_child.py")
_MAX_REPORT_BYTES = 1 << 20


class Outcome(NamedTuple):
    """Outcome of a run; `detail` is the error, or the limit that stopped it."""

    result: Literal["passed", "failed", "stopped", "not_run"]
    detail: str = ""


def run(
    code: str,
    tests: Sequence[str] = (),
    seconds: float = SECONDS,
    *,
    hook: bool = True,
    namespaces: bool | None = None,
    filter: bool | None = None,
) -> Outcome:
    """Run the code and what the tests call of it in the sandbox, and compare the values.

    The result is "passed" if all tests are met, "failed" if one is not or something raised,
    "stopped" if a limit was reached or the process exited, "not_run" if this system can't isolate
    code, or a test can't be checked outside the sandbox. Nothing that the code does raises here.

    `hook`, `namespaces` and `filter` (None: where available) switch single layers of isolation on
    or off, to test the others.
    """
    try:
        split = [split_test(test) for test in tests]
    except UnsafeTest as error:
        return Outcome("not_run", f"the test can't be checked: {error}")
    chosen = isolation()
    if namespaces is None and filter is None and chosen == "none":
        return Outcome("not_run", "this system can't isolate code")
    task = {
        "code": code,
        "steps": [step for test in split for step in test.steps],
        "parent": os.getpid(),
        "cpu": CPU_SECONDS,
        "memory": MEMORY,
        "hook": hook,
        "namespaces": chosen == "namespaces" if namespaces is None else namespaces,
        "filter": _can("filter") if filter is None else filter,
    }
    with tempfile.TemporaryDirectory(prefix="gladius-code-") as folder:
        reading, writing = os.pipe()
        try:
            process = _start(folder, writing)
        finally:
            os.close(writing)
        try:
            data = json.dumps(task).encode()
            return _verdict(split, *_report(process, data, reading, seconds))
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


def _report(
    process: subprocess.Popen[bytes], task: bytes, reading: int, seconds: float
) -> tuple[list[str], str]:
    """Send the task; the lines of the report until it ends, and why it was cut, if it was."""
    assert process.stdin is not None
    try:
        process.stdin.write(task)
        process.stdin.close()
    except OSError:
        return [], "it did not start"
    deadline = time.monotonic() + seconds
    report = b""
    reason = "it exceeded a limit or exited"
    while len(report) < _MAX_REPORT_BYTES:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            reason = f"it ran longer than {seconds:g} s"
            break
        if not select.select([reading], [], [], remaining)[0]:
            continue
        data = os.read(reading, 65536)
        if not data:
            break
        report += data
    return report.decode(errors="replace").split("\n")[:-1], reason


def _verdict(tests: Sequence[SplitTest], lines: Sequence[str], cut: str) -> Outcome:
    """The outcome of a report: a line `ran`, a `value` for each expression of the tests, `done`."""
    rest = iter(lines)

    def content(kind: str) -> str:
        word, _, text = next(rest, "stopped ").partition(" ")
        if word == "failed":
            raise Failed(text)
        if word != kind:
            raise TimeoutError(text if word == "stopped" and text else cut)
        return text

    try:
        content("ran")
        for test in tests:
            test.check([decode_value(content("value")) for _ in range(test.values)])
        content("done")
    except Failed as error:
        return Outcome("failed", shown(str(error), 200))
    except TimeoutError as error:
        return Outcome("stopped", shown(str(error), 200))
    return Outcome("passed")


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
def isolation() -> Literal["namespaces", "filter", "none"]:
    """How code is kept apart on this system; "none": it is not run."""
    if _can("namespaces"):
        return "namespaces"
    return "filter" if _can("filter") else "none"


@functools.cache
def _can(layer: str) -> bool:
    """Whether this user may use a layer on this system, as a process finds that tries it."""
    if not sys.platform.startswith("linux"):
        return False
    probe = [sys.executable, "-I", "-S", "-B", str(_CHILD), "probe", layer]
    try:
        return subprocess.run(probe, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
