"""The Validate screen: check a model, and read each check and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Select, Static

from engine.events import AnyEvent, CheckDone, ReportDone
from gladius_tui.app.model.model_sources import ModelSources, find_model_sources, source_options
from gladius_tui.app.model.texts import bar, fraction_done
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.widgets.check_details import CheckDetails
from gladius_tui.app.widgets.check_table import CheckTable
from gladius_tui.app.widgets.form_fields import form_row, select, set_options, text_input
from gladius_tui.format import duration

_GRADES = {
    "sound": ("✓", "$text-success"),
    "broken": ("✗", "$text-error"),
    "good": ("✓", "$text-success"),
    "fair": ("!", "$text-warning"),
    "low": ("!", "$text-warning"),
    "unknown": ("–", "$foreground"),
}
"""Sign and colour of the report's two grades: structure and quality."""


@dataclass(eq=False)
class ModelsFound(Message, bubble=False):
    """The models on disk were looked up."""

    sources: ModelSources


class ValidationReport(JobScreen):
    """A row for each check, the selected check in full, and the verdict."""

    JOB = "validate"
    FILTERS = True

    def __init__(self) -> None:
        super().__init__()
        self.sources: ModelSources | None = None
        self._checks: dict[str, CheckDone] = {}
        self._report: ReportDone | None = None
        self._filter = ""

    def compose_body(self) -> ComposeResult:
        with Horizontal(classes="pane strip") as strip:
            strip.border_title = "Validate"
            yield from form_row("model", select("source", [("…", "?")], "?"))
            yield from form_row("gguf", text_input("gguf", "a GGUF file instead"))
        with Horizontal(id="checks"):
            yield CheckTable()
            yield CheckDetails()
        verdict = Static(id="verdict", classes="pane", markup=False)
        verdict.border_title = "Verdict"
        yield verdict
        yield self.notice

    def on_mount(self) -> None:
        self._find_models()

    def on_screen_resume(self) -> None:
        self._find_models()
        self.focus_main()

    def job_detached(self) -> None:
        super().job_detached()
        self._find_models()

    def focus_main(self) -> None:
        self.query_one(CheckTable).focus()

    @work(thread=True, exclusive=True, group="sources", exit_on_error=False)
    def _find_models(self) -> None:
        self.post_message(ModelsFound(find_model_sources(self.gladius.ws)))

    def on_models_found(self, message: ModelsFound) -> None:
        if not self.composed:
            return
        self.sources = message.sources
        set_options(self.query_one("#source", Select), source_options(message.sources))
        self.refresh_bindings()
        self.show()

    def run_begun(self) -> None:
        self._checks, self._report = {}, None

    def take_event(self, event: AnyEvent) -> None:
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
        checks = list(self._checks.values())
        self.query_one(CheckTable).show(checks, self._filter, self.size.width)
        self.query_one("#verdict", Static).update(self._verdict())
        self._show_details()

    @on(CheckTable.RowHighlighted)
    def _show_details(self) -> None:
        """Show the selected check in full."""
        key = self.query_one(CheckTable).key
        self.query_one(CheckDetails).show(self._checks.get(key or ""))

    def _verdict(self) -> Content:
        """The verdict, or what is being done, or what to do next."""
        if (report := self._report) is not None:
            grades = [
                Content.styled(f"{_GRADES[grade][0]} {grade}", _GRADES[grade][1])
                for grade in (report.structure, report.quality)
            ]
            took = f"  in {duration(report.seconds)}" if report.seconds else ""
            return Content("   ").join(grades).append(f"   {report.verdict}{took}")
        if running := [task for task in self.tasks.values() if not task.finished]:
            task = running[-1]
            count = f"  {task.done:,.0f} of {task.total:,.0f}" if task.total else ""
            return bar(fraction_done(task), 24).append(f"  {task.label}{count}")
        if self.live or self.launching:
            return Content("loading the model…")
        if self.sources is not None and not self.sources.any:
            return Content("No model and no checkpoint yet. Press 3 to train one.")
        return Content("" if self._checks else "Nothing was validated yet. Press ^s to start.")


class ValidateScreen(ValidationReport):
    """The report of a validation, with keys to start and cancel it."""

    MODE = "validate"
    CSS_PATH = "validate.tcss"
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Validate", id="validate.start", tooltip="Run all checks"),
        Binding("c", "cancel", "Cancel", id="validate.cancel", tooltip="Stop the validation"),
    ]

    def about(self) -> str:
        return (
            "Checks the trained model: its files, weights and tokenizer, then its answers. "
            "Structural checks decide the verdict; quality is reported beside them. Each row can "
            "be read in full, whole answers included."
        )

    def command_line(self) -> list[str]:
        words = ["validate"]
        if gguf := self._gguf:
            words += ["--gguf", gguf]
        elif checkpoint := str(self.query_one("#source", Select).value):
            words += ["--checkpoint", checkpoint]
        return words

    @property
    def _gguf(self) -> str:
        return self.query_one("#gguf", Input).value.strip()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "start":
                return not self.live and not self.launching
            case "cancel":
                return self.live
        return super().check_action(action, parameters)

    def action_start(self) -> None:
        if self.sources is not None and not self.sources.any and not self._gguf:
            self.notice.show("no model and no checkpoint yet; press 3 to train one", "warning")
        else:
            self.start(self.command_line())

    def action_cancel(self) -> None:
        self.request_stop()
