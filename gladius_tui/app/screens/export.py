"""Owns the Export screen: the model as a GGUF file, the stages of making it, and what came out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Select, Static

from engine.events import AnyEvent, CheckDone, Exported, LogLine, RunEnded, RunStarted
from gladius_tui.app.model.deliverable import Deliverable, find_deliverable, has_command, sources
from gladius_tui.app.model.texts import amount, bar, eta, padded, rate, share_of
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.watch import JobDetached
from gladius_tui.app.widgets.form_fields import choice, choose_among, field, line
from gladius_tui.app.widgets.table import Cell, coloured, facts
from gladius_tui.format import duration, size

_LINES = 100
_SIGNS = {
    "pass": ("✓", "$text-success"),
    "warn": ("!", "$text-warning"),
    "fail": ("✗", "$text-error"),
    "skip": ("–", "$foreground 60%"),
}


class Offered(Message, bubble=False):
    """What can be exported was looked for."""

    def __init__(self, found: Deliverable, types: list[tuple[str, str]], there: bool) -> None:
        self.found, self.types, self.there = found, types, there
        super().__init__()


def _types(parameters: int) -> list[tuple[str, str]]:
    """The types a file may have, with the size that it would come to."""
    from engine.gguf_types import GGUF_TYPES, estimated_bytes

    if not parameters:
        return [(name, name) for name in GGUF_TYPES]
    return [
        (f"{name:<8} about {size(estimated_bytes(parameters, name))}", name) for name in GGUF_TYPES
    ]


class ExportScreen(JobScreen):
    """A form, stages with bars, and the outcome."""

    MODE = "export"
    JOB = "export"
    CSS = """
    .form .field { height: 1; margin-bottom: 1; }
    .form .field > Label { width: 10; }
    .-h16 .form .field { margin-bottom: 0; }
    .job { height: 1fr; }
    .job .form { width: 2fr; }
    .job .stages { width: 3fr; }
    .-w60 .job { layout: vertical; }
    .-w60 .job > * { width: 100%; }
    """
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Export", id="export.start", tooltip="Write the file"),
        Binding("c", "cancel", "Cancel", id="export.cancel",
                tooltip="End it; nothing half-written stays"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._found: Deliverable | None = None
        self._there = True
        self._made = ""
        """The type that the shown run makes, until the form has taken it over."""
        self._log: list[tuple[str, str]] = []
        self._checks: list[CheckDone] = []
        self._exported: Exported | None = None

    def compose_body(self) -> ComposeResult:
        with Horizontal(classes="job"):
            with VerticalScroll(classes="pane form") as form:
                form.border_title = "Export"
                yield from field("type", choice("type", [("f16", "f16")], "f16"))
                yield from field("from", choice("source", [("…", "?")], "?"))
                yield from field("output", line("output", "beside the model"))
                yield from field("push", line("push", "owner/name on the Hub"))
                yield Static(id="facts")
            with VerticalScroll(classes="pane stages") as stages:
                stages.border_title = "Stages"
                yield Static(id="stages")
        yield self.notice

    def on_mount(self) -> None:
        self._look()

    def on_screen_resume(self) -> None:
        self._look()

    def about(self) -> str:
        return (
            "Writes the trained model as one GGUF file, for llama.cpp and all that builds on it. "
            "f32, f16, bf16 and q8_0 are written here; the smaller ones need llama.cpp's "
            "quantiser. Without a finished model the newest checkpoint that verifies is taken."
        )

    def command_line(self) -> list[str]:
        words = ["export", "--type", str(self.query_one("#type", Select).value)]
        if checkpoint := str(self.query_one("#source", Select).value):
            words += ["--checkpoint", checkpoint]
        if output := self.query_one("#output", Input).value.strip():
            words += ["--output", output]
        if repo := self.query_one("#push", Input).value.strip():
            words += ["--push", repo]
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
        found = find_deliverable(self.gladius.ws)
        types = _types(found.state.current_params or found.state.target_params)
        self.post_message(Offered(found, types, has_command("export")))

    def on_offered(self, message: Offered) -> None:
        if not self.composed:
            return
        self._found, self._there = message.found, message.there
        choose_among(self.query_one("#type", Select), message.types)
        self._choose_made()
        choose_among(self.query_one("#source", Select), sources(message.found))
        self.refresh_bindings()
        self.show()

    @on(Select.Changed)
    @on(Input.Changed)
    def _on_changed(self) -> None:
        self.show()

    def on_job_detached(self, _: JobDetached) -> None:
        self._look()

    # Its events

    def begin(self) -> None:
        self._log, self._checks, self._exported = [], [], None

    def take(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                self._made = str(event.config.get("type", ""))
                self._choose_made()
            case LogLine():
                self._log = [*self._log[-_LINES:], (event.level, event.text)]
            case CheckDone():
                self._checks.append(event)
            case Exported():
                self._exported = event

    def _choose_made(self) -> None:
        """The form says what the shown run makes, wherever that was started."""
        if not self.composed or self._found is None:
            return  # the form is still to come, or has no types to choose from
        select = self.query_one("#type", Select)
        if self._made in [value for _, value in select._options]:
            select.value = self._made
        self._made = ""

    def show(self) -> None:
        if not self.composed:
            return
        found = self._found
        rows: list[tuple[str, Cell]] = [("", "")]
        if found is not None:
            if not self._there:
                text = "this build has no `export` command yet"
                rows.append(("export", coloured(self.app, f"! {text}", "warning")))
            elif not found.any:
                rows.append(("model", "none yet, and no checkpoint"))
                rows.append(("next", "press 3 to train one"))
            else:
                params = found.state.current_params
                rows.append(("model", "finished" if found.finished else "not finished yet"))
                rows += [("parameters", f"{params:,}")] if params else []
                rows.append(("disk", f"{size(found.free)} free"))
                rows += [("there", name) for name in found.gguf]
        self.query_one("#facts", Static).update(facts(rows))
        self.query_one("#stages", Static).update(self._stages())
        if self.live or self.ended is not None:
            self.query_one(".stages", VerticalScroll).scroll_end(animate=False)

    def _stages(self) -> Content:
        """A bar a stage, what was said, and how it ended."""
        if (self.live or self.launching) and not self.tasks:
            return Content.styled("the worker loads its libraries…", "$foreground 60%")
        if not self.run_id:
            return Content.styled("Nothing was exported yet. ^s starts it.", "$foreground 60%")
        room = max(8, (self.size.width // 2) - 56)
        rows: list[Content | str] = []
        tasks = list(self.tasks.values())
        for task in tasks:
            # One stage follows another: what is not the last is over.
            over = task.finished or task is not tasks[-1] or not self.live
            colour = "$success" if over else "$primary"
            told = "" if over else f" {rate(task):>12} {eta(task)}"
            done = f" {amount(task.done, task.unit):>11}" if task.done else ""
            rows.append(
                Content.assemble(
                    "✓ " if over else "◆ ",
                    padded(task.label, 26),
                    " ",
                    bar(1.0 if over else share_of(task), room, colour),
                    f"{done}{told}",
                )
            )
        rows += [""] if rows else []
        marks = {"error": "✗ ", "warning": "! ", "info": "  "}
        rows += [f"{marks[level]}{text}" for level, text in self._log]
        for check in self._checks:
            sign, colour = _SIGNS[check.verdict]
            rows.append(
                Content.styled(f"{sign} ", colour).append(
                    f"{padded(check.title, 26)} {check.value}"
                )
            )
        if self._exported is not None:
            rows += ["", *_file(self._exported, self.gladius.ws.root)]
        if self.ended is not None:
            rows += ["", _ended(self.ended)]
        return Content("\n").join(rows)

    # Doing

    def action_start(self) -> None:
        repo = self.query_one("#push", Input).value.strip()
        if not self._there:
            self.notice.say("this build has no `export` command yet", "warning")
        elif self._found is not None and not self._found.any:
            self.notice.say("there is no model and no checkpoint; press 3 to train one", "warning")
        elif repo:
            from gladius_tui.app.dialogs.choice import Choice

            self.app.push_screen(
                Choice(
                    f"Upload to {repo}",
                    "Model, GGUF file and model card leave this machine.",
                    [
                        ("no", "Don't upload, only write the file"),
                        ("private", "Upload; a new repository is private"),
                        ("public", "Upload; a new repository is public"),
                    ],
                ),
                self._push,
            )
        else:
            self.start(self.command_line())

    def _push(self, answer: str | None) -> None:
        words = self.command_line()
        if answer == "no":
            self.start(words[: words.index("--push")])
        elif answer is not None:
            self.start([*words, "--yes", *(["--private"] if answer == "private" else [])])

    def action_cancel(self) -> None:
        self.ask_stop()


def _file(exported: Exported, root: Path) -> list[Content | str]:
    """What came out; its place as seen from the root, where it lies below it."""
    path = Path(exported.path)
    where = path.relative_to(root) if path.is_relative_to(root) else path
    rows: list[Content | str] = [
        Content.styled(f"✓ {where}", "bold"),
        f"  {exported.weights}, {size(exported.bytes)}, of {exported.source}",
        f"  {exported.parity}",
    ]
    return [*rows, f"  beside it: {', '.join(exported.beside)}"] if exported.beside else rows


def _ended(ended: RunEnded) -> Content:
    if ended.status == "completed":
        return Content.styled(f"✓ done in {duration(ended.seconds)}", "$text-success")
    if ended.status == "stopped":
        return Content.styled(f"○ {ended.reason or 'stopped'}", "$text-warning")
    return Content.styled(f"✗ {ended.reason or 'failed'}", "$text-error")
