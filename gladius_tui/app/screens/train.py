"""Owns the Train screen: a run as a form, what it comes to, and its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label, OptionList, Select, Static
from textual.widgets.option_list import Option

from engine.errors import GladiusError
from gladius_tui.app.screens.base import FilterBar, GladiusScreen
from gladius_tui.app.screens.job import Notice
from gladius_tui.app.watch import JobAttached, JobDetached
from gladius_tui.app.widgets.form_fields import choice, field, line
from gladius_tui.app.widgets.table import Cell, coloured, facts
from gladius_tui.launch import Ended, job_of

if TYPE_CHECKING:
    from engine.events import GpuReading
    from engine.experts.registry import ExpertSpec, ExpertStatus
    from gladius_tui.app.model.preflight import Assessment, Form

_SETTLE_SECONDS = 0.25
_DEVICES = ("auto", "cuda", "mps", "cpu")
_VERDICTS = {
    "ok": ("✓ ", "success"),
    "warn": ("! ", "warning"),
    "bad": ("✗ ", "error"),
    "note": ("", "primary"),
    "": ("", ""),
}


class Known(Message, bubble=False):
    """What the form offers was read."""

    def __init__(
        self,
        presets: Sequence[str],
        specs: dict[str, ExpertSpec],
        statuses: dict[str, ExpertStatus],
        gpus: tuple[GpuReading, ...],
        error: str = "",
    ) -> None:
        self.presets, self.specs, self.statuses = presets, specs, statuses
        self.gpus = gpus
        self.error = error
        super().__init__()


class Assessed(Message, bubble=False):
    """A form was looked at."""

    def __init__(self, assessment: Assessment) -> None:
        self.assessment = assessment
        super().__init__()


class ExpertList(OptionList):
    """The experts with a mark each; the sign tells, not only a colour."""

    class Marked(Message):
        """The user has marked one, or taken its mark away."""

    BINDINGS: ClassVar = [
        Binding("space", "select", "Mark", show=False, tooltip="Let this expert teach, or not"),
    ]

    def __init__(self) -> None:
        super().__init__(id="experts", compact=True)
        self._labels: dict[str, str] = {}
        self.marked: tuple[str, ...] = ()
        """Names, in the order of the list."""

    def offer(self, labels: dict[str, str]) -> None:
        """Show these experts."""
        if labels != self._labels:
            self._labels = labels
            self.clear_options()
            self.add_options([Option(self._prompt(name), id=name) for name in labels])

    def mark(self, names: Sequence[str]) -> None:
        """Mark exactly these; no message is sent."""
        marked = tuple(name for name in self._labels if name in names)
        if marked != self.marked:
            self.marked = marked
            for name in self._labels:
                self.replace_option_prompt(name, self._prompt(name))

    def _prompt(self, name: str) -> Content:
        sign = "● " if name in self.marked else "○ "
        text = Content(sign + self._labels[name])
        return text if name in self.marked else text.stylize("$foreground 60%")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        name = event.option_id or ""
        chosen = set(self.marked) ^ {name}
        self.mark([name for name in self._labels if name in chosen])
        self.post_message(self.Marked())


class TrainScreen(GladiusScreen):
    """The form, what it comes to, and the command that it is."""

    MODE = "train"
    CSS = """
    #train { height: 1fr; }
    #form { width: 1fr; }
    #form .field { height: 1; margin-bottom: 1; }
    #form .field > Label { width: 10; }
    #form #experts-field { height: auto; layout: horizontal; }
    #form ExpertList { width: 1fr; height: auto; max-height: 9; padding: 0; }
    #form ExpertList { background: $background; }
    .-h16 #form .field { margin-bottom: 0; }
    #outcome { width: 1fr; }
    #command { height: auto; max-height: 6; }
    .-w60 #train { layout: vertical; }
    .-w60 #form { height: auto; max-height: 60%; width: 100%; }
    .-w60 #outcome { width: 100%; }
    """
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Start", id="train.start",
                tooltip="Start this run; an unfinished one of the same config goes on"),
        Binding("ctrl+r,r", "resume", "Resume", id="train.resume",
                tooltip="Go on with the unfinished run, with its own config"),
        Binding("ctrl+n,n", "fresh", "Start fresh", id="train.fresh",
                tooltip="Begin anew at step 0; the former run is kept aside (asks)"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self._gpus: tuple[GpuReading, ...] = ()
        self._specs: dict[str, ExpertSpec] = {}
        self._own_experts = False
        """Whether they are not the preset's."""
        self._preset_experts: tuple[str, ...] = ()
        self._filling = False
        self._launching = False
        self._assessment: Assessment | None = None
        self._told: tuple[list[tuple[str, Cell]], str] | None = None
        self._ready = False

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="train"):
            with VerticalScroll(classes="pane", id="form") as form:
                form.border_title = "Run"
                presets = choice("preset", [("nano", "nano")], "nano")
                yield from field("preset", presets)
                with Vertical(classes="field", id="experts-field"):
                    yield Label("experts")
                    yield ExpertList()
                yield from field("hours", line("hours", "no limit"))
                yield from field("data", line("data", "files, folders or hf:org/name"))
                devices = [(name, name) for name in _DEVICES]
                yield from field(
                    "device",
                    choice("device", devices, "auto"),
                )
                yield from field("set", line("overrides", "section.field=value ..."))
                yield from field("config", line("file", "a TOML file laid over the preset"))
            with VerticalScroll(classes="pane", id="outcome") as outcome:
                outcome.border_title = "What it comes to"
                yield Static("looking…", id="facts")
        command = Static("", id="command", classes="pane", markup=False)
        command.border_title = "Command"
        command.border_subtitle = "y copies it"
        yield command
        yield self.notice

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "train", "download")
        for argv in self.gladius.launched:
            self.launch_begun(argv)
        self._read()

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    def on_screen_resume(self) -> None:
        if self._ready:
            self._read()

    def about(self) -> str:
        return (
            "A run as a form: a preset, and what is changed of it. What is wrong is told as you "
            "type, and whether memory and disk hold it. The run is a process of its own: it goes "
            "on when this app is closed. tab and shift+tab move between fields, space chooses an "
            "expert, enter opens a list."
        )

    def command_line(self) -> list[str]:
        try:
            return self.form().argv()
        except ValueError:
            return ["train"]

    # What the form offers

    @work(thread=True, exclusive=True, group="known", exit_on_error=False)
    def _read(self) -> None:
        from engine.config import preset_names
        from engine.experts.registry import expert_status, load_experts
        from engine.hardware import Sampler

        ws = self.gladius.ws
        gpus = Sampler().read(None, ws.root).gpus
        try:
            specs = load_experts(ws)
            statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
            message = Known(preset_names(), specs, statuses, gpus)
        except (GladiusError, OSError) as error:
            message = Known(preset_names(), {}, {}, gpus, str(error))
        self.post_message(message)

    def on_known(self, message: Known) -> None:
        if not self.composed:
            return
        self._gpus, self._specs = message.gpus, message.specs
        if message.error:
            self.notice.say(message.error, "error")
        self._filling = True
        presets = self.query_one("#preset", Select)
        if not self._ready:
            presets.set_options([(name, name) for name in message.presets])
            presets.value = "nano" if "nano" in message.presets else message.presets[0]
        labels = {}
        for name, spec in message.specs.items():
            state = message.statuses[name].state
            labels[name] = spec.title + ("" if state == "ready" else f"  ({state})")
        self.query_one(ExpertList).offer(labels)
        self._filling = False
        if not self._ready:
            self._ready = True
            # One that was refused at once is over by now, and is what is to be put right here.
            self._fill_from([self.gladius.opened_with, *self.gladius.launched])
            presets.focus()
        self._changed()

    def _fill_from(self, launched: Sequence[Sequence[str]]) -> None:
        """Show the command with which the app was started, where that is `train`."""
        commands = [argv for argv in launched if argv and argv[0] == "train"]
        if not commands:
            return
        from gladius_tui.commands.training import train

        values = train.make_context("train", list(commands[-1][1:]), resilient_parsing=True).params
        self._filling = True
        if values.get("preset"):
            self.query_one("#preset", Select).value = values["preset"]
        import shlex

        texts = {
            "hours": "" if values.get("hours") is None else f"{values['hours']:g}",
            "data": shlex.join(values.get("data") or ()),
            "overrides": shlex.join(values.get("overrides") or ()),
            "file": values.get("config") or "",
        }
        for name, text in texts.items():
            self.query_one(f"#{name}", Input).value = text
        if values.get("experts"):
            self._own_experts = True
            self.query_one(ExpertList).mark(values["experts"].split(","))
        self._filling = False

    # The form

    def form(self) -> Form:
        """What the form holds."""
        from gladius_tui.app.model.preflight import Form

        def text(name: str) -> str:
            return self.query_one(f"#{name}", Input).value

        preset = self.query_one("#preset", Select).value
        marked = self.query_one(ExpertList).marked
        return Form(
            preset=str(preset) if self._ready else "nano",
            file=text("file"),
            experts=marked if self._own_experts else None,
            hours=text("hours"),
            data=text("data"),
            device=str(self.query_one("#device", Select).value),
            overrides=text("overrides"),
        )

    @on(Input.Changed)
    @on(Select.Changed)
    def _on_changed(self, event: Input.Changed | Select.Changed) -> None:
        if isinstance(event.control, FilterBar) or self._filling:
            return
        if event.control.id == "preset":
            self._own_experts = False
        self._changed()

    @on(ExpertList.Marked)
    def _on_experts(self) -> None:
        marked = self.query_one(ExpertList).marked
        self._own_experts = set(marked) != set(self._preset_experts)
        self._changed()

    @on(Input.Submitted)
    def _on_submitted(self) -> None:
        self.focus_next()

    def _changed(self) -> None:
        """Look at the form once it has been still for a moment."""
        if self._ready and self.composed:
            self._assess(self.form())

    @work(thread=True, exclusive=True, group="assess", exit_on_error=False)
    def _assess(self, form: Form) -> None:
        import time

        from textual.worker import get_current_worker

        from gladius_tui.app.model.preflight import assess

        worker = get_current_worker()
        time.sleep(_SETTLE_SECONDS)
        if worker.is_cancelled:
            return
        assessment = assess(self.gladius.ws, form, self._gpus)
        if not worker.is_cancelled:
            self.post_message(Assessed(assessment))

    def on_assessed(self, message: Assessed) -> None:
        if not self.composed:
            return
        self._assessment = found = message.assessment
        if found.experts and not self._own_experts:
            self._preset_experts = found.experts
            self.query_one(ExpertList).mark(found.experts)
        rows: list[tuple[str, Cell]] = []
        for said in found.lines:
            sign, colour = _VERDICTS[said.verdict]
            rows.append((said.label, coloured(self.app, sign, colour).append(said.text)))
        if found.problems:
            rows += [("", "")] if rows else []
            title = "problems" if len(found.problems) > 1 else "problem"
            for n, problem in enumerate(found.problems):
                rows.append(("" if n else title, coloured(self.app, f"✗ {problem}", "error")))
        elif "train" not in self.gladius.watcher.jobs:
            rows += [("", ""), ("ready", coloured(self.app, "✓ ^s starts it", "success"))]
        if found.stored is not None and "train" not in self.gladius.watcher.jobs:
            step, preset = found.stored
            text = f"a run of {preset} stands at step {step:,}; ^r goes on with it"
            rows += [("", ""), ("unfinished", text)]
        try:
            import shlex

            command = shlex.join(["gladius_train", *found.form.argv()])
        except ValueError as error:
            command = str(error)
        if (rows, command) != self._told:  # the form is looked at whenever the screen comes back
            self._told = (rows, command)
            self.query_one("#facts", Static).update(facts(rows))
            self.query_one("#command", Static).update(Text(command))
        self.refresh_bindings()

    def theme_changed(self) -> None:
        if self._assessment is not None:
            self.on_assessed(Assessed(self._assessment))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("start", "fresh", "resume"):
            return "train" not in self.gladius.watcher.jobs and not self._launching
        return super().check_action(action, parameters)

    def called(self, action: str, name: str) -> str:
        found = self._assessment
        return "" if action == "resume" and found is not None and found.stored is None else name

    # Starting

    def action_start(self) -> None:
        if self._assessment is not None and self._assessment.problems:
            self.notice.say(self._assessment.problems[0], "error")
            return
        self._start(self.command_line())

    def action_resume(self) -> None:
        self._start(["resume"])

    def action_fresh(self) -> None:
        from gladius_tui.app.dialogs.choice import Choice

        stored = self._assessment.stored if self._assessment is not None else None
        what = (
            f"The run of {stored[1]} (step {stored[0]:,}) is moved aside, not deleted."
            if stored is not None
            else "It begins at step 0. What a former run has left here is moved aside, not deleted."
        )
        self.app.push_screen(
            Choice("Start fresh", what, [("keep", "Keep the former run"), ("fresh", "Begin anew")]),
            self._fresh,
        )

    def _fresh(self, answer: str | None) -> None:
        if answer == "fresh":
            self._start([*self.command_line(), "--fresh"])

    def _start(self, argv: Sequence[str]) -> None:
        self.gladius.launch(argv)

    def launch_begun(self, argv: Sequence[str]) -> None:
        if job_of(argv) == "train":
            self._launching = True
            self.notice.say("starting…")
            self.refresh_bindings()

    def on_job_attached(self, message: JobAttached) -> None:
        if message.job == "train":
            self.notice.say("")
            if self._launching and self.is_current:
                self.gladius.action_mode("dashboard")
            self._launching = False
            self._changed()

    def on_job_detached(self, _: JobDetached) -> None:
        self._read()

    def launch_ended(self, ended: Ended) -> bool:
        if ended.job != "train":
            return False
        self._launching = False
        if ended.error:
            self.notice.say(ended.error, "error")
        elif self.notice.text == "starting…":
            self.notice.say("")
        self.refresh_bindings()
        self._changed()
        return True
