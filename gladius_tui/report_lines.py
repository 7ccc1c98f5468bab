"""Format the events of validation and export as lines of text."""

from __future__ import annotations

import textwrap
from pathlib import Path

from engine.events import AnyEvent, CheckDone, Exported, ReportDone
from gladius_tui.event_lines import Layout, short_path
from gladius_tui.format import size
from gladius_tui.terminal import printable

_VERDICTS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "skip": ("–", "dim"),
}
_HEADINGS = {"structural": "structure", "quality": "quality"}


class ReportLines:
    """Lines for checks, the verdict of a validation, and an exported file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._group = ""

    def lines(self, event: AnyEvent) -> list[str]:
        """The lines for `event`; none for other events."""
        match event:
            case CheckDone():
                return self._check_done(event)
            case ReportDone():
                return self._report_done(event)
            case Exported():
                return self._exported(event)
        return []

    def _check_done(self, event: CheckDone) -> list[str]:
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
            width = layout.width - 10
            for line in event.detail.splitlines():
                lines += [f"{'':<10}{part}" for part in textwrap.wrap(printable(line), width)]
        return lines

    def _report_done(self, event: ReportDone) -> list[str]:
        style = "red" if event.structure == "broken" else "green"
        if event.structure == "sound" and event.quality in ("low", "unknown"):
            style = "yellow"
        return [
            "",
            self._layout.item("verdict", self._layout.style(event.verdict, style), style),
            self._layout.item("report", short_path(event.path)),
        ]

    def _exported(self, event: Exported) -> list[str]:
        path = Path(short_path(event.path))
        others = ", ".join(str(path.with_name(name)) for name in event.beside)
        return [
            "",
            self._layout.item("gguf", f"{path} ({event.weights}, {size(event.bytes)})", "green"),
            self._layout.item("parity", event.parity),
            self._layout.item("also wrote", others),
        ]
