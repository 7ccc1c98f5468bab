"""The plain-text log of a root: one line for each event that has a description.

The output of workers (tracebacks, warnings of libraries) goes to the end of the same file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from engine.events import AnyEvent, Job, Progress, StepDone, describe
from engine.foreign_text import shown
from engine.workspace import Workspace

MAX_BYTES = 4 << 20
"""Size at which a log is moved to `training_DAY.1.log`, and that one to `.2.log`."""
_MAX_FILES = 4
"""Former parts of a day's log that are kept."""
_SECONDS_BETWEEN_STEPS = 10.0


class TextLog:
    """Appends to today's log file; a line that can't be written is dropped."""

    def __init__(self, ws: Workspace, job: Job, max_bytes: int = MAX_BYTES) -> None:
        self._ws = ws
        self._job = job
        self._max_bytes = max_bytes
        self._step_at = 0.0

    def event(self, event: AnyEvent) -> None:
        """Write the event's description, if any; a step at most every ten seconds, and of the
        progress of a task only its end."""
        if isinstance(event, Progress) and not event.finished:
            return
        if isinstance(event, StepDone) and not event.skipped:
            if time.monotonic() - self._step_at < _SECONDS_BETWEEN_STEPS:
                return
            self._step_at = time.monotonic()
        line = describe(event)
        if line is not None:
            self.line(line)

    def line(self, text: str) -> None:
        """Write one line, stamped with the local time; line breaks become spaces."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        path = self._ws.log_file()
        try:
            with open(path, "ab", buffering=0) as file:
                line = f"{stamp} {self._job}: {shown(' '.join(text.splitlines()))}\n"
                file.write(line.encode())
                if os.fstat(file.fileno()).st_size > self._max_bytes:
                    _rotate(path)
        except OSError:
            pass


def _rotate(path: Path) -> None:
    """Copy the log to `.1.log` and empty it: the worker and other jobs have it open too."""
    for number in range(_MAX_FILES - 1, 0, -1):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path.with_suffix(f".{number}.log"), path.with_suffix(f".{number + 1}.log"))
    part = path.with_suffix(".1.log")
    try:
        shutil.copyfile(path, part)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    os.truncate(path, 0)
