"""Delete what a killed process leaves behind: temporary files, and its queue's semaphores."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from engine.run.lock import identity_of
from engine.workspace import Workspace

_PARTIAL = re.compile(r"\.(?:probe|semaphores)-(\d+)|\.\S+\.(\d+)-\d+\.tmp")
"""Files of Workspace.create, `record_semaphores` and write_bytes, with the pid of their writer."""
_SHARED_MEMORY = Path("/dev/shm")


def record_semaphores(ws: Workspace, names: Iterable[str]) -> None:
    """Record the semaphores of this process, so that the next start can delete them.

    The system keeps them when this process and multiprocessing's resource tracker are both killed.
    """
    with contextlib.suppress(OSError):  # they are all that would be left
        _record_file(ws).write_text("".join(f"{name}\n" for name in names))


def forget_semaphores(ws: Workspace) -> None:
    """Delete the record: this process has deleted its semaphores itself."""
    with contextlib.suppress(OSError):
        _record_file(ws).unlink(missing_ok=True)


def _record_file(ws: Workspace) -> Path:
    return ws.tmp / f".semaphores-{os.getpid()}"


def _unlink_semaphores(record: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        for name in record.read_text().split():
            if re.fullmatch(r"/mp-[A-Za-z0-9_]+", name):
                (_SHARED_MEMORY / f"sem.{name[1:]}").unlink(missing_ok=True)


def remove_leftovers(ws: Workspace) -> None:
    """Delete temporary files in tmp/ and in the checkpoints' folder whose process has ended, and
    the semaphores that it recorded."""
    for folder in (ws.tmp, ws.checkpoints_dir):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                found = _PARTIAL.fullmatch(name)
                if found is not None and identity_of(int(found[1] or found[2])) is None:
                    if name.startswith(".semaphores"):
                        _unlink_semaphores(Path(folder, name))
                    Path(folder, name).unlink(missing_ok=True)
