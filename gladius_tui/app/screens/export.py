"""The Export screen: write the trained model as a GGUF file, and watch the stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import Input, Select, Static

from engine.events import AnyEvent, RunStarted
from gladius_tui.app.model.model_sources import ModelSources, find_model_sources, source_options
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.widgets.export_stages import ExportRun, ExportStages
from gladius_tui.app.widgets.form_fields import form_row, select, set_options, text_input
from gladius_tui.app.widgets.table import Cell, facts
from gladius_tui.format import size


@dataclass(eq=False)
class SourcesRead(Message, bubble=False):
    """The models on disk were looked up."""

    sources: ModelSources
    types: list[tuple[str, str]]
    """(label, name) of the GGUF types."""


def _type_options(parameters: int) -> list[tuple[str, str]]:
    """(label, name) of the GGUF types, with the estimated size of the file."""
    from engine.gguf_types import GGUF_TYPES, estimated_bytes

    if not parameters:
        return [(name, name) for name in GGUF_TYPES]
    return [
        (f"{name:<8} about {size(estimated_bytes(parameters, name))}", name) for name in GGUF_TYPES
    ]


class ExportForm(JobScreen):
    """The form of an export, and its stages."""

    JOB = "export"

    def __init__(self) -> None:
        super().__init__()
        self.sources: ModelSources | None = None
        self._export = ExportRun()
        self._run_type = ""
        """The type of the shown run, until the form has selected it."""

    def compose_body(self) -> ComposeResult:
        with Horizontal(classes="job"):
            with VerticalScroll(classes="pane form") as form:
                form.border_title = "Export"
                yield from form_row("type", select("type", [("f16", "f16")], "f16"))
                yield from form_row("from", select("source", [("…", "?")], "?"))
                yield from form_row("output", text_input("output", "in the model's folder"))
                yield from form_row("push", text_input("push", "owner/name on the Hub"))
                yield Static(id="facts", markup=False)
            yield ExportStages()
        yield self.notice

    def on_mount(self) -> None:
        self._read_sources()

    def on_screen_resume(self) -> None:
        self._read_sources()

    def job_detached(self) -> None:
        super().job_detached()
        self._read_sources()

    @work(thread=True, exclusive=True, group="sources", exit_on_error=False)
    def _read_sources(self) -> None:
        sources = find_model_sources(self.gladius.ws)
        state = sources.state
        types = _type_options(state.current_params or state.target_params)
        self.post_message(SourcesRead(sources, types))

    def on_sources_read(self, message: SourcesRead) -> None:
        if not self.composed:
            return
        self.sources = message.sources
        set_options(self.query_one("#type", Select), message.types)
        self._select_run_type()
        set_options(self.query_one("#source", Select), source_options(message.sources))
        self.refresh_bindings()
        self.show()

    @on(Select.Changed)
    @on(Input.Changed)
    def _on_field_changed(self) -> None:
        self.show()

    def run_begun(self) -> None:
        self._export = ExportRun()

    def take_event(self, event: AnyEvent) -> None:
        if isinstance(event, RunStarted):
            self._run_type = str(event.config.get("type", ""))
            self._select_run_type()
        else:
            self._export.take(event)

    def _select_run_type(self) -> None:
        """Select the type of the shown run, wherever it was started."""
        if not self.composed or self.sources is None:
            return  # the form does not exist, or its types are not known yet
        field = self.query_one("#type", Select)
        if self._run_type in [value for _, value in field._options]:
            field.value = self._run_type
        self._run_type = ""

    def show(self) -> None:
        if not self.composed:
            return
        self.query_one("#facts", Static).update(facts(self._source_facts()))
        stages = self.query_one(ExportStages)
        tasks = list(self.tasks.values())
        if (self.live or self.launching) and not tasks:
            stages.show_text("loading libraries…")
        elif not self.run_id:
            stages.show_text("Nothing was exported yet. Press ^s to start.")
        else:
            root = self.gladius.ws.root
            stages.show(self._export, tasks, self.ended, live=self.live, root=root)

    def _source_facts(self) -> list[tuple[str, Cell]]:
        """The models on disk, below the form."""
        rows: list[tuple[str, Cell]] = [("", "")]
        sources = self.sources
        if sources is None:
            return rows
        if not sources.any:
            return [
                *rows,
                ("model", "none yet, and no checkpoint"),
                ("next", "press 3 to train one"),
            ]
        parameters = sources.state.current_params
        rows.append(("model", "finished" if sources.finished else "not finished yet"))
        rows += [("parameters", f"{parameters:,}")] if parameters else []
        rows.append(("disk", f"{size(sources.free)} free"))
        return [*rows, *(("on disk", name) for name in sources.gguf)]


class ExportScreen(ExportForm):
    """The form of an export and its stages, with keys to start and cancel it."""

    MODE = "export"
    CSS_PATH = "export.tcss"
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Export", id="export.start", tooltip="Write the file"),
        Binding("c", "cancel", "Cancel", id="export.cancel",
                tooltip="Stop the export; partial files are removed"),
    ]  # fmt: skip

    def about(self) -> str:
        return (
            "Writes the trained model as one GGUF file, for llama.cpp and programs built on it. "
            "f32, f16, bf16 and q8_0 need nothing else; the smaller types need llama.cpp's "
            "quantizer. Without a finished model the newest verified checkpoint is used."
        )

    def command_line(self) -> list[str]:
        words = ["export", "--type", str(self.query_one("#type", Select).value)]
        if checkpoint := str(self.query_one("#source", Select).value):
            words += ["--checkpoint", checkpoint]
        if output := self.query_one("#output", Input).value.strip():
            words += ["--output", output]
        if repo := self._push_repo:
            words += ["--push", repo]
        return words

    @property
    def _push_repo(self) -> str:
        return self.query_one("#push", Input).value.strip()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "start":
                return not self.live and not self.launching
            case "cancel":
                return self.live
        return super().check_action(action, parameters)

    def action_start(self) -> None:
        if self.sources is not None and not self.sources.any:
            self.notice.show("no model and no checkpoint yet; press 3 to train one", "warning")
        elif repo := self._push_repo:
            from gladius_tui.app.dialogs.choice import Choice

            text = "Model, GGUF file and model card leave this machine."
            answers = [
                ("no", "Don't upload, only write the file"),
                ("private", "Upload; a new repository is private"),
                ("public", "Upload; a new repository is public"),
            ]
            self.app.push_screen(Choice(f"Upload to {repo}", text, answers), self._push)
        else:
            self.start(self.command_line())

    def _push(self, answer: str | None) -> None:
        words = self.command_line()
        if answer == "no":
            self.start(words[: words.index("--push")])
        elif answer is not None:
            self.start([*words, "--yes", *(["--private"] if answer == "private" else [])])

    def action_cancel(self) -> None:
        self.request_stop()
