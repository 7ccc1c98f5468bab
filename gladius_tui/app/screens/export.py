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
    can_quantize: bool
    """Whether llama.cpp is here, which makes the types that this program does not write."""


def _type_options(parameters: int, can_quantize: bool) -> list[tuple[str, str]]:
    """(label, name) of the GGUF types, with the estimated size of the file."""
    from engine.gguf_types import GGUF_TYPES, estimated_bytes

    options = []
    for name, kind in GGUF_TYPES.items():
        amount = f"about {size(estimated_bytes(parameters, name))}" if parameters else ""
        need = "" if kind.own or can_quantize else "needs llama.cpp, which is not here"
        options.append((f"{name:<8} {amount:<16}{need}".rstrip(), name))
    return options


class ExportForm(JobScreen):
    """The form of an export, and its stages."""

    JOB = "export"

    def __init__(self) -> None:
        super().__init__()
        self.sources: ModelSources | None = None
        self.can_quantize = True
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
        from engine.programs import can_quantize

        self.post_message(SourcesRead(find_model_sources(self.gladius.ws), can_quantize()))

    def on_sources_read(self, message: SourcesRead) -> None:
        if not self.composed:
            return
        self.sources, self.can_quantize = message.sources, message.can_quantize
        set_options(self.query_one("#source", Select), source_options(message.sources))
        self._set_types()
        self._select_run_type()
        self.refresh_bindings()
        self.show()

    @on(Select.Changed)
    @on(Input.Changed)
    def _on_field_changed(self, event: Select.Changed | Input.Changed) -> None:
        if event.control.id == "source":
            self._set_types()
        self.show()

    @property
    def parameters(self) -> int:
        """Parameters of the selected model; 0 if there is none."""
        value = str(self.query_one("#source", Select).value)
        return 0 if self.sources is None else self.sources.parameters.get(value, 0)

    def _set_types(self) -> None:
        """Offer the types, with the size that the selected model's file would have."""
        options = _type_options(self.parameters, self.can_quantize)
        set_options(self.query_one("#type", Select), options)

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
        parameters = self.parameters
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
            "Writes the trained model as one GGUF file, for llama.cpp and programs built on it; "
            "the type is part of the file's name, except for f16. "
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
        elif problem := self._missing_tool():
            self.notice.show(problem, "error")
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

    def _missing_tool(self) -> str:
        """Why the selected type can't be made on this machine; "" if it can."""
        from engine.gguf_types import gguf_type
        from engine.programs import quantizer_missing

        kind = gguf_type(str(self.query_one("#type", Select).value))
        return "" if kind.own or self.can_quantize else quantizer_missing(kind.name)

    def _push(self, answer: str | None) -> None:
        words = self.command_line()
        if answer == "no":
            self.start(words[: words.index("--push")])
        elif answer is not None:
            self.start([*words, "--yes", *(["--private"] if answer == "private" else [])])

    def action_cancel(self) -> None:
        self.request_stop()
