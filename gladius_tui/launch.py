"""Owns starting a runner: `gladius_train --no-ui ...` as a process that outlives this one.

What it was told, and how it ended, come back; what it does is seen by attaching to it
(`engine.run.control`).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.run.job import JOBS
from engine.workspace import Workspace

if TYPE_CHECKING:
    from engine.events import Job

_TAIL = 16 << 10


@dataclass(frozen=True)
class Ended:
    """How a command that was launched ended."""

    argv: tuple[str, ...]
    exit_code: int
    error: str
    """What it said was wrong, "" where all went well."""

    @property
    def job(self) -> Job:
        return job_of(self.argv)


def job_of(argv: Sequence[str]) -> Job:
    """The job that a command runs."""
    command = argv[0] if argv else ""
    for job in JOBS:
        if command == job:
            return job
    return "download" if command == "models" else "train"


def launch(ws: Workspace, argv: Sequence[str], on_end: Callable[[Ended], None]) -> int:
    """Start `gladius_train --no-ui ARGV` in a session of its own; returns its pid at once.

    `on_end` is called in a thread when it has ended, if this process still lives then. OSError
    where the root can't be written.
    """
    ws.create()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = ws.logs_dir / f"launch_{argv[0]}_{stamp}_{secrets.token_hex(2)}.out"
    words = ["--root", str(ws.root), "--no-ui", "--quiet", *argv]
    package = Path(__file__).parents[1]
    with open(path, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gladius_tui.cli", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The current folder may hold anything; these packages are to be the ones of this one.
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": _first_on_path(package)},
        )

    def wait() -> None:
        code = process.wait()
        error = _error(path) if code else ""
        if not code:
            path.unlink(missing_ok=True)
        elif not error:
            error = f"it ended with {code}; see {path}"
        on_end(Ended(tuple(argv), code, error))

    threading.Thread(target=wait, name=f"launch-{process.pid}", daemon=True).start()
    return process.pid


def _first_on_path(package: Path) -> str:
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([str(package), *filter(None, known)]))


def _error(path: Path) -> str:
    """What the program's last `error: ` says, further lines included."""
    try:
        text = path.read_bytes()[-_TAIL:].decode(errors="replace")
    except OSError:
        return ""
    return ("\n" + text).rpartition("\nerror: ")[2].strip() if "error: " in text else ""


def printed(root: str, argv: Sequence[str], timeout: float = 300.0) -> str:
    """What a command prints, errors included, without colours."""
    command = [sys.executable, "-m", "gladius_tui.cli", "--root", root, "--no-ui", *argv]
    package = Path(__file__).parents[1]
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": _first_on_path(package)},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"error: {error}"
    return answer.stdout.decode(errors="replace").rstrip()
