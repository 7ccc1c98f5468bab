"""Print a job's events as lines of text or of JSON."""

from __future__ import annotations

import sys
from typing import IO

from msgspec.structs import replace

from engine.events import (
    AnyEvent,
    CheckDone,
    EvalDone,
    Exported,
    Heartbeat,
    PhaseStarted,
    Progress,
    QuestionAnswered,
    ReportDone,
    RunEnded,
    RunStarted,
    SampleDrawn,
    StepDone,
    encode,
)
from engine.foreign_text import shown_values
from gladius_tui.answer_lines import answer_lines
from gladius_tui.event_lines import Layout, ProgressLines, message_lines
from gladius_tui.report_lines import ReportLines
from gladius_tui.run_lines import RunLines
from gladius_tui.terminal import line_width, print_lines, use_colour

MIN_WIDTH = 60


class Renderer:
    """Turns a run's events, in order, into lines of text."""

    def __init__(self, *, colour: bool = False, width: int = 100) -> None:
        self._layout = Layout(colour=colour, width=max(MIN_WIDTH, width))
        self._run = RunLines(self._layout)
        self._progress = ProgressLines()
        self._reports = ReportLines(self._layout)
        self._verdict = ""

    def lines(self, event: AnyEvent) -> list[str]:
        """The lines for `event`; none for events that are not printed."""
        event = shown_values(event)
        match event:
            case RunEnded(reason=reason) if reason and reason == self._verdict:
                # The verdict was printed with the report.
                return self._run.lines(replace(event, reason=""))
            case RunStarted() | PhaseStarted() | StepDone() | EvalDone() | SampleDrawn():
                return self._run.lines(event)
            case RunEnded():
                return self._run.lines(event)
            case Progress():
                return self._progress.lines(event)
            case ReportDone():
                self._verdict = event.verdict
                return self._reports.lines(event)
            case CheckDone() | Exported():
                return self._reports.lines(event)
        if isinstance(event, QuestionAnswered):
            return answer_lines(event, self._layout)
        return message_lines(event, self._layout)


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
        elif self._quiet:
            # Without the report's lines the verdict is in RunEnded; no blank line goes first.
            is_end = isinstance(event, RunEnded)
            lines = [line for line in self._renderer.lines(event) if line] if is_end else []
        else:
            lines = self._renderer.lines(event)
        if lines:
            self._broken = not print_lines(lines, self._stream, painted=not self._as_json)

    def remember(self, event: AnyEvent) -> None:
        """Process an event that later lines refer to, without printing it."""
        self._renderer.lines(event)
