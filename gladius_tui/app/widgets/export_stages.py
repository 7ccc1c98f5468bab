"""The stages of an export, its log, its checks and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.events import AnyEvent, CheckDone, Exported, LogLine, Progress, RunEnded
from gladius_tui.app.model.texts import amount, bar, eta, fraction_done, padded, rate
from gladius_tui.format import duration, size

_LOG_LINES = 100
_VERDICTS = {
    "pass": ("✓", "$text-success"),
    "warn": ("!", "$text-warning"),
    "fail": ("✗", "$text-error"),
    "skip": ("–", "$foreground 60%"),
}
_LEVELS = {"error": "✗ ", "warning": "! ", "info": "  "}
_LABEL = 26
"""Columns of a stage's label."""


@dataclass
class ExportRun:
    """One export, folded from its events."""

    log: list[tuple[str, str]] = field(default_factory=list)
    """(level, text)."""
    checks: list[CheckDone] = field(default_factory=list)
    exported: Exported | None = None

    def take(self, event: AnyEvent) -> None:
        """Take in an event."""
        match event:
            case LogLine():
                self.log = [*self.log[-_LOG_LINES:], (event.level, event.text)]
            case CheckDone():
                self.checks.append(event)
            case Exported():
                self.exported = event


class ExportStages(VerticalScroll):
    """A bar for each stage, then log, checks and outcome."""

    def __init__(self) -> None:
        super().__init__(classes="pane stages")
        self.border_title = "Stages"

    def compose(self) -> ComposeResult:
        yield Static(id="stages", markup=False)

    def show_text(self, text: str) -> None:
        """Show a text while there are no stages."""
        self.query_one(Static).update(Content.styled(text, "$foreground 60%"))

    def show(
        self,
        run: ExportRun,
        tasks: list[Progress],
        ended: RunEnded | None,
        *,
        live: bool,
        root: Path,
    ) -> None:
        """Show an export; `live`: whether it is running, `root`: what paths are relative to."""
        width = max(8, (self.screen.size.width // 2) - 56)
        # One stage follows another: only the last one can be in progress.
        rows: list[Content | str] = [
            _stage_row(task, width, done=task.finished or task is not tasks[-1] or not live)
            for task in tasks
        ]
        rows += [""] if rows else []
        rows += [f"{_LEVELS[level]}{text}" for level, text in run.log]
        for check in run.checks:
            sign, colour = _VERDICTS[check.verdict]
            text = f"{padded(check.title, _LABEL)} {check.value}"
            rows.append(Content.styled(f"{sign} ", colour).append(text))
        if run.exported is not None:
            rows += ["", *_file_rows(run.exported, root)]
        if ended is not None:
            rows += ["", _end_row(ended)]
        self.query_one(Static).update(Content("\n").join(rows))
        if live or ended is not None:
            self.scroll_end(animate=False)


def _stage_row(task: Progress, width: int, *, done: bool) -> Content:
    speed = "" if done else f" {rate(task):>12} {eta(task)}"
    count = f" {amount(task.done, task.unit):>11}" if task.done else ""
    return Content.assemble(
        "✓ " if done else "◆ ",
        padded(task.label, _LABEL),
        " ",
        bar(1.0 if done else fraction_done(task), width, "$success" if done else "$primary"),
        f"{count}{speed}",
    )


def _file_rows(exported: Exported, root: Path) -> list[Content | str]:
    """The file that was written, relative to the root if it is inside it."""
    path = Path(exported.path)
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    rows: list[Content | str] = [
        Content.styled(f"✓ {shown}", "bold"),
        f"  {exported.weights}, {size(exported.bytes)}, from {exported.source}",
    ]
    return [*rows, f"  next to it: {', '.join(exported.beside)}"] if exported.beside else rows


def _end_row(ended: RunEnded) -> Content:
    if ended.status == "completed":
        return Content.styled(f"✓ done in {duration(ended.seconds)}", "$text-success")
    if ended.status == "stopped":
        return Content.styled(f"○ {ended.reason or 'stopped'}", "$text-warning")
    return Content.styled(f"✗ {ended.reason or 'failed'}", "$text-error")
