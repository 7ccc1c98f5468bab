"""Start `gladius_train --no-ui ...` as a process that outlives this one, and report how it ended.

To watch the job that it runs, attach to it (`engine.run.control`).
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

_TAIL_BYTES = 16 << 10


@dataclass(frozen=True)
class Ended:
    """How a launched command ended."""

    argv: tuple[str, ...]
    exit_code: int
    error: str
    """Its error message; "" if it succeeded."""

    @property
    def job(self) -> Job:
        return job_of(self.argv)


def job_of(argv: Sequence[str]) -> Job:
    """The job that a command runs."""
    command = argv[0] if argv else ""
    if command == "models":
        return "download"
    jobs: dict[str, Job] = {kind.name: kind.name for kind in JOBS.values()}
    return jobs.get(command, "train")


def launch(ws: Workspace, argv: Sequence[str], on_end: Callable[[Ended], None]) -> int:
    """Start `gladius_train --no-ui ARGV` in a new session; returns its pid at once.

    `on_end` is called in a thread when it ends, if this process is still alive.

    Raises:
        OSError: the root can't be written.
    """
    ws.create()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = ws.logs_dir / f"launch_{argv[0]}_{stamp}_{secrets.token_hex(2)}.out"
    with open(path, "wb") as output:
        process = subprocess.Popen(
            _command(str(ws.root), "--quiet", *argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=_environment(),
        )

    def wait() -> None:
        code = process.wait()
        error = _error_message(path) if code else ""
        if not code:
            path.unlink(missing_ok=True)
        elif not error:
            how = f"killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
            error = f"{how}; see {path}"
        on_end(Ended(tuple(argv), code, error))

    threading.Thread(target=wait, name=f"launch-{process.pid}", daemon=True).start()
    return process.pid


def printed(root: str, argv: Sequence[str], timeout: float = 300.0) -> str:
    """What a command prints, errors included, without colours; `timeout` in seconds."""
    try:
        result = subprocess.run(
            _command(root, *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"error: {error}"
    return result.stdout.decode(errors="replace").rstrip()


def _command(root: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "gladius_tui.cli", "--root", root, "--no-ui", *words]


def _environment() -> dict[str, str]:
    """The environment, set so that the program imports these packages, not the current folder's."""
    package_root = str(Path(__file__).parents[1])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join(dict.fromkeys([package_root, *filter(None, known)]))
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def _error_message(path: Path) -> str:
    """The program's last message after `error: `, further lines included; "" without one."""
    try:
        text = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""
    return ("\n" + text).rpartition("\nerror: ")[2].strip() if "error: " in text else ""
