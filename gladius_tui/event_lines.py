"""Format single events as lines of text: their layout, progress of tasks, short messages.

`engine.events.describe` has the text of every event. Here and in `run_lines` and `report_lines`
it is indented, coloured and followed by details.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine.events import (
    AnswersJudged,
    AnyEvent,
    CapabilitiesScored,
    CheckpointRejected,
    CheckpointSaved,
    GuardTripped,
    HealthWarning,
    LogLine,
    Progress,
    RunPaused,
    RunResumed,
    TextsRead,
    describe,
    describe_reason,
)
from gladius_tui.terminal import paint

PROGRESS_SECONDS = 5.0
"""Least time between two lines of the same task."""
STANDSTILL_SECONDS = 30.0
"""Least time between two lines of the same task when nothing was done in between."""

_MAX_RULE = 100


@dataclass(frozen=True)
class Layout:
    """Colour and width of the lines."""

    colour: bool
    width: int

    def style(self, text: str, style: str) -> str:
        """The text in a style of `terminal.paint`."""
        return paint(text, style, self.colour)

    def wrapped(self, text: str, style: str = "") -> list[str]:
        """The text in indented lines of at most the width."""
        lines = textwrap.wrap(
            text, self.width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
        return [self.style(line, style) for line in lines]

    def heading(self, text: str) -> str:
        """The text in bold, followed by a rule."""
        rule = "─" * max(4, min(self.width, _MAX_RULE) - len(text) - 4)
        return f"{self.style('── ' + text, 'bold')} {self.style(rule, 'dim')}"


class ProgressLines:
    """Lines for the progress of long tasks: at most one line per task every few seconds."""

    def __init__(self) -> None:
        self._printed: dict[str, tuple[float, float]] = {}
        """By task: when its last line was printed, and what was done then."""

    def lines(self, event: Progress) -> list[str]:
        """The line for `event`; none if the task's last line is too recent."""
        printed_at, printed_done = self._printed.get(event.task, (-STANDSTILL_SECONDS, -1.0))
        interval = PROGRESS_SECONDS if event.done != printed_done else STANDSTILL_SECONDS
        if not event.finished and event.time - printed_at < interval:
            return []
        self._printed[event.task] = (event.time, event.done)
        return [f"  {describe(event)}"]


def message_lines(event: AnyEvent, layout: Layout) -> list[str]:
    """The text of an event that needs no details, coloured by its kind; none if it has no text."""
    text = describe(event)
    if text is None:
        return []
    if isinstance(event, AnswersJudged | CapabilitiesScored):
        return layout.wrapped(text)
    if isinstance(event, TextsRead):
        return _table_lines(event, layout)
    # No line of the text looks like one of ours.
    return [layout.style("  " + text.replace("\n", "\n  "), _message_style(event))]


def _table_lines(table: TextsRead, layout: Layout) -> list[str]:
    """The counts on one line, then a line for each reason, with what is wrong with the first."""
    lines = layout.wrapped(describe(msgspec.structs.replace(table, reasons=())) or "")
    for reason in table.reasons:
        text = describe_reason(reason)
        if reason.detail not in ("", reason.reason):
            text += f": {reason.detail}"
        style = "" if reason.outcome == "file" else "yellow"
        lines += [layout.style(f"    {' '.join(text.split())}", style)]
    return lines


def _message_style(event: AnyEvent) -> str:
    match event:
        case CheckpointSaved():
            return "green"
        case CheckpointRejected() | GuardTripped() | RunPaused() | RunResumed():
            return "yellow"
        case HealthWarning():
            return "yellow" if event.active else "dim"
        case LogLine():
            return {"warning": "yellow", "error": "red"}.get(event.level, "")
    return ""


def short_path(path: str) -> str:
    """The path relative to the current folder if it is below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path
