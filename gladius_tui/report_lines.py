"""Format the events of validation and export as lines of text."""

from __future__ import annotations

import textwrap
from pathlib import Path

from engine.events import CheckDone, Exported, ReportDone, describe
from gladius_tui.event_lines import Layout, short_path

_VERDICTS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "skip": ("–", "dim"),
}
_HEADINGS = {"structural": "structure", "quality": "quality"}
_DETAIL_INDENT = " " * 10


class ReportLines:
    """Lines for checks, the verdict of a validation, and an exported file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._group = ""

    def lines(self, event: CheckDone | ReportDone | Exported) -> list[str]:
        """The lines for `event`."""
        match event:
            case CheckDone():
                return self._check_done(event)
            case ReportDone():
                style = self._verdict_style(event)
                return ["", self._layout.style(f"  {describe(event)}", style)]
            case Exported():
                return self._exported(event)

    def _check_done(self, event: CheckDone) -> list[str]:
        """A row of the table, under the heading of its group; then the details."""
        layout = self._layout
        lines = []
        if event.group != self._group:
            self._group = event.group
            lines += ["", layout.heading(_HEADINGS[event.group])]
        mark, style = _VERDICTS[event.verdict]
        text = event.value if event.verdict != "skip" else event.meaning
        if event.bound and event.verdict != "skip":
            text += layout.style(f"  ({event.bound})", "dim")
        if event.former and event.former != event.value:
            text += layout.style(f"  was {event.former}", "dim")
        verdict = layout.style(f"{mark} {event.verdict}", style)
        lines.append(f"  {verdict}  {event.title:<24} {text}")
        if event.detail and event.verdict != "skip":
            width = layout.width - len(_DETAIL_INDENT)
            for line in event.detail.splitlines():
                wrapped = textwrap.wrap(line, width)
                lines += [_DETAIL_INDENT + part for part in wrapped]
        return lines

    @staticmethod
    def _verdict_style(event: ReportDone) -> str:
        if event.structure == "broken":
            return "red"
        return "yellow" if event.quality in ("low", "unknown") else "green"

    def _exported(self, event: Exported) -> list[str]:
        lines = ["", self._layout.style(f"  {describe(event)}", "green")]
        if event.beside:
            folder = Path(short_path(event.path)).parent
            others = ", ".join(str(folder / name) for name in event.beside)
            lines.append(f"  also wrote {others}")
        return lines
