"""Owns the Validate screen: the checks on a model as they come, each to be read in full, and the
verdict that they add up to.
"""

from __future__ import annotations

from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Select, Static

from engine.events import AnyEvent, CheckDone, ReportDone
from gladius_tui.app.model.deliverable import Deliverable, find_deliverable, has_command, sources
from gladius_tui.app.model.texts import bar, cut, share_of
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.watch import JobDetached
from gladius_tui.app.widgets.form_fields import choice, choose_among, field, line
from gladius_tui.app.widgets.table import Cell, Table, coloured, facts
from gladius_tui.format import duration

_VERDICTS = {
    "pass": ("✓", "success"),
    "warn": ("!", "warning"),
    "fail": ("✗", "error"),
    "skip": ("–", "dim"),
}
_HALVES = {
    "sound": ("✓", "$text-success"),
    "broken": ("✗", "$text-error"),
    "good": ("✓", "$text-success"),
    "fair": ("!", "$text-warning"),
    "low": ("!", "$text-warning"),
    "unknown": ("–", "$foreground"),
}


class Offered(Message, bubble=False):
    """What can be validated was looked for."""

    def __init__(self, found: Deliverable, there: bool) -> None:
        self.found, self.there = found, there
        super().__init__()


class ValidateScreen(JobScreen):
    """A form in a line, a row a check, and the row under the cursor in full."""

    MODE = "validate"
    JOB = "validate"
    FILTERS = True
    CSS = """
    .strip .field { height: 1; }
    .strip { height: 3; }
    .strip .field { width: 1fr; margin: 0 1 0 0; }
    .strip .field > Label { width: auto; padding: 0 2 0 0; }
    #checks { height: 1fr; }
    #checks #table { width: 3fr; }
    #checks #reading { width: 2fr; }
    .-w60 #checks { layout: vertical; }
    .-w60 #checks #table, .-w60 #checks #reading { width: 100%; height: 1fr; }
    #verdict { height: auto; max-height: 5; }
    """
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Validate", id="validate.start", tooltip="Run all checks"),
        Binding("c", "cancel", "Cancel", id="validate.cancel", tooltip="End it"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._found: Deliverable | None = None
        self._there = True
        self._checks: dict[str, CheckDone] = {}
        self._report: ReportDone | None = None
        self._filter = ""

    def compose_body(self) -> ComposeResult:
        with Horizontal(classes="pane strip") as strip:
            strip.border_title = "Validate"
            yield from field("of", choice("source", [("…", "?")], "?"))
            yield from field("gguf", line("gguf", "a GGUF file instead"))
        with Horizontal(id="checks"):
            yield Table(id="table", title="Checks")
            with VerticalScroll(classes="pane", id="reading") as reading:
                reading.border_title = "Reading"
                yield Static(id="reading-text")
        verdict = Static(id="verdict", classes="pane")
        verdict.border_title = "Verdict"
        yield verdict
        yield self.notice

    def on_mount(self) -> None:
        self._look()

    def on_screen_resume(self) -> None:
        self._look()
        self.focus_main()

    def focus_main(self) -> None:
        self.query_one(Table).focus()

    def about(self) -> str:
        return (
            "Checks the trained model: its files, weights and tokenizer, then what it says. "
            "Structural checks decide; quality is told beside them. Each row can be read in full, "
            "whole answers included."
        )

    def command_line(self) -> list[str]:
        words = ["validate"]
        if gguf := self.query_one("#gguf", Input).value.strip():
            words += ["--gguf", gguf]
        elif checkpoint := str(self.query_one("#source", Select).value):
            words += ["--checkpoint", checkpoint]
        return words

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "start":
                return not self.live and not self.launching and self._there
            case "cancel":
                return self.live
        return super().check_action(action, parameters)

    # What is there

    @work(thread=True, exclusive=True, group="look", exit_on_error=False)
    def _look(self) -> None:
        self.post_message(Offered(find_deliverable(self.gladius.ws), has_command("validate")))

    def on_offered(self, message: Offered) -> None:
        if not self.composed:
            return
        self._found, self._there = message.found, message.there
        choose_among(self.query_one("#source", Select), sources(message.found))
        self.refresh_bindings()
        self.show()

    def on_job_detached(self, _: JobDetached) -> None:
        self._look()

    # Its events

    def begin(self) -> None:
        self._checks, self._report = {}, None

    def take(self, event: AnyEvent) -> None:
        match event:
            case CheckDone():
                self._checks[event.name] = event
            case ReportDone():
                self._report = event

    def filter_changed(self, text: str) -> None:
        self._filter = text
        self.show()

    def show(self) -> None:
        if not self.composed:
            return
        broad = self.size.width >= 150
        former = any(check.former for check in self._checks.values())
        header = ["", "check", "found"]
        header += ["before"] if former else []
        header += ["bound"] if broad else []
        # The table has three fifths of the width; what does not fit is read beside it.
        room = self.size.width * (3 if self.size.width >= 100 else 5) // 5 - 36
        room = max(24, room - (30 if broad else 0) - 4 * former)
        earlier = room * 2 // 5 if former else 0
        room -= earlier
        rows: dict[str, list[Cell]] = {}
        for name, check in self._checks.items():
            if self._filter in f"{name} {check.title} {check.value} {check.verdict}".lower():
                sign, colour = _VERDICTS[check.verdict]
                value = cut(check.value or check.meaning, room)
                value = coloured(self.app, value, "dim" if check.verdict == "skip" else "")
                rows[name] = [coloured(self.app, sign, colour), check.title, value]
                same = check.former == check.value
                before = "same" if same else cut(check.former, earlier)
                rows[name] += [coloured(self.app, before, "dim")] if former else []
                rows[name] += [coloured(self.app, cut(check.bound, 30), "dim")] if broad else []
        table = self.query_one(Table)
        table.fill(header, rows)
        counts = [
            f"{_VERDICTS[verdict][0]} {count}"
            for verdict in _VERDICTS
            if (count := sum(check.verdict == verdict for check in self._checks.values()))
        ]
        table.border_subtitle = "  ".join(counts)
        self._show_verdict()
        self._read()

    def _show_verdict(self) -> None:
        text = Content("")
        if self._report is not None:
            halves = []
            for half in (self._report.structure, self._report.quality):
                sign, colour = _HALVES[half]
                halves.append(Content.styled(f"{sign} {half}", colour))
            took = f"  in {duration(self._report.seconds)}" if self._report.seconds else ""
            text = Content("   ").join(halves).append(f"   {self._report.verdict}{took}")
        elif running := [task for task in self.tasks.values() if not task.finished]:
            task = running[-1]
            count = f"  {task.done:,.0f} of {task.total:,.0f}" if task.total else ""
            text = bar(share_of(task), 24).append(f"  {task.label}{count}")
        elif self.live or self.launching:
            text = Content("loading the model…")
        elif self._found is not None and not self._there:
            text = Content("! this build has no `validate` command yet")
        elif self._found is not None and not self._found.any:
            text = Content("There is no model and no checkpoint yet. Press 3 to train one.")
        elif not self._checks:
            text = Content("Nothing was validated yet. ^s starts it.")
        self.query_one("#verdict", Static).update(text)

    @on(Table.RowHighlighted)
    def _on_highlighted(self) -> None:
        self._read()

    def _read(self) -> None:
        """The row under the cursor in full."""
        key = self.query_one(Table).key
        check = self._checks.get(key or "")
        if check is None:
            self.query_one("#reading-text", Static).update("")
            return
        sign, colour = _VERDICTS[check.verdict]
        kind = "decides" if check.group == "structural" else "is told, never fails"
        rows: list[tuple[str, Cell]] = [
            ("check", check.title),
            ("verdict", coloured(self.app, f"{sign} {check.verdict}", colour)),
            ("found", check.value or "–"),
            ("bound", check.bound or "–"),
        ]
        rows += [("before", check.former)] if check.former else []
        rows += [("means", check.meaning), ("kind", f"{check.group}: {kind}")]
        rows += [("", ""), ("", check.detail)] if check.detail else []
        self.query_one("#reading-text", Static).update(facts(rows, 8))

    # Doing

    def action_start(self) -> None:
        gguf = self.query_one("#gguf", Input).value.strip()
        if not self._there:
            self.notice.say("this build has no `validate` command yet", "warning")
        elif self._found is not None and not self._found.any and not gguf:
            self.notice.say("there is no model and no checkpoint; press 3 to train one", "warning")
        else:
            self.start(self.command_line())

    def action_cancel(self) -> None:
        self.ask_stop()
