"""Print a job's events as lines of text or of JSON."""

from __future__ import annotations

import sys
from typing import IO

from msgspec.structs import replace

from engine.events import (
    AnyEvent,
    CheckpointSaved,
    Heartbeat,
    Progress,
    ReportDone,
    RunEnded,
    RunPaused,
    RunResumed,
    encode,
)
from gladius_tui.event_lines import Layout, MessageLines, ProgressLines, TrainingLines
from gladius_tui.format import size
from gladius_tui.report_lines import ReportLines
from gladius_tui.terminal import line_width, print_lines, use_colour


def acknowledgement(event: AnyEvent) -> str:
    """The event that acknowledges a command, as one line."""
    match event:
        case RunPaused():
            return f"paused{_at_step(event)}"
        case RunResumed():
            return f"resumed{_at_step(event)}"
        case CheckpointSaved():
            return f"checkpoint of step {event.step:,} saved: {event.path} ({size(event.bytes)})"
        case RunEnded(status="completed"):
            return f"completed{_at_step(event)}"
        case RunEnded(status="stopped"):
            return f"stopped{_at_step(event)}"
        case RunEnded():
            return f"failed{_at_step(event)}: {event.reason}"
    return f"{type(event).__name__}{_at_step(event)}"


def _at_step(event: AnyEvent) -> str:
    """` at step N`; empty for jobs without steps, and before the first step."""
    return f" at step {event.step:,}" if event.step else ""


class Renderer:
    """Turns a run's events, in order, into lines of text."""

    def __init__(self, *, colour: bool = False, width: int = 100) -> None:
        layout = Layout(colour=colour, width=max(60, width))
        self._training = TrainingLines(layout)
        self._progress = ProgressLines(layout)
        self._reports = ReportLines(layout)
        self._messages = MessageLines(layout)
        self._verdict = ""

    def lines(self, event: AnyEvent) -> list[str]:
        """The lines for `event`; none for events that are not printed."""
        match event:
            case ReportDone():
                self._verdict = event.verdict
            case RunEnded(reason=reason) if reason and reason == self._verdict:
                event = replace(event, reason="")  # the verdict was printed with the report
        if isinstance(event, Progress):
            return self._progress.lines(event)
        for part in (self._training, self._reports, self._messages):
            if lines := part.lines(event):
                return lines
        return []


class Printer:
    """Writes events to a stream as text or as JSON lines; `quiet` prints only how the job ended."""

    def __init__(
        self, stream: IO[str] | None = None, *, as_json: bool = False, quiet: bool = False
    ) -> None:
        self._stream: IO[str] = sys.stdout if stream is None else stream
        self._as_json = as_json
        self._quiet = quiet
        self._broken = False
        self._renderer = Renderer(colour=use_colour(self._stream), width=line_width(self._stream))

    def __call__(self, event: AnyEvent) -> None:
        """Print one event."""
        if self._broken or isinstance(event, Heartbeat):
            return
        if self._as_json:
            lines = [encode(event).decode()]
        elif self._quiet and isinstance(event, ReportDone):
            return  # the verdict is also in RunEnded
        else:
            lines = self._renderer.lines(event)
            if self._quiet and not isinstance(event, RunEnded):
                return
            if self._quiet:
                lines = [line for line in lines if line]  # no blank line above the only output
        if lines:
            self._broken = not print_lines(lines, self._stream)

    def remember(self, event: AnyEvent) -> None:
        """Process an event that later lines refer to, without printing it."""
        self._renderer.lines(event)
