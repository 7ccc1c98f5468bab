"""The plain-text log of a root: one line for each event that has a description.

The output of workers (tracebacks, warnings of libraries) goes to the end of the same file.
"""

from __future__ import annotations

import time

from engine.events import AnyEvent, Job, Progress, StepDone, describe
from engine.foreign_text import shown
from engine.workspace import Workspace

_SECONDS_BETWEEN_STEPS = 10.0


class TextLog:
    """Appends to today's log file; a line that can't be written is dropped."""

    def __init__(self, ws: Workspace, job: Job) -> None:
        self._ws = ws
        self._job = job
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
        try:
            with open(self._ws.log_file(), "ab", buffering=0) as file:
                line = f"{stamp} {self._job}: {shown(' '.join(text.splitlines()))}\n"
                file.write(line.encode())
        except OSError:
            pass
