"""The Train screen: a run as a form, its preflight checks, and keys to start or resume it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from engine.errors import GladiusError
from gladius_tui.app.job_messages import JobAttached, JobDetached
from gladius_tui.app.model.form import Form
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.widgets.notice import Notice
from gladius_tui.app.widgets.preflight_pane import PreflightPane
from gladius_tui.app.widgets.train_form import TrainForm
from gladius_tui.format import size
from gladius_tui.launch import Ended, job_of

if TYPE_CHECKING:
    from engine.events import GpuReading
    from gladius_tui.app.model.preflight import Assessment

_SETTLE_SECONDS = 0.25
"""Pause after a change before the form is assessed."""
_STARTING = "starting…"


@dataclass(eq=False)
class OptionsRead(Message, bubble=False):
    """The options of the form were read."""

    presets: Sequence[str]
    experts: Mapping[str, str]
    """Labels, by name."""
    gpus: tuple[GpuReading, ...]
    error: str = ""


@dataclass(eq=False)
class FormAssessed(Message, bubble=False):
    """The preflight checks of a form are done."""

    assessment: Assessment


class RunForm(GladiusScreen):
    """The form, its preflight checks, and the command that it stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.assessment: Assessment | None = None
        self._gpus: tuple[GpuReading, ...] = ()
        self._command = ""

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="train"):
            yield TrainForm()
            yield PreflightPane()
        command = Static("", id="command", classes="pane", markup=False)
        command.border_title = "Command"
        command.border_subtitle = "y copies it"
        yield command
        yield self.notice

    def on_mount(self) -> None:
        self.read_options()

    def on_screen_resume(self) -> None:
        if self.query(TrainForm) and self.form.ready:
            self.read_options()

    @property
    def form(self) -> TrainForm:
        """The form's widget."""
        return self.query_one(TrainForm)

    def command_line(self) -> list[str]:
        try:
            return self.form.value.argv()
        except ValueError:
            return ["train"]

    @work(thread=True, exclusive=True, group="options", exit_on_error=False)
    def read_options(self) -> None:
        """Read the presets, the experts and the GPUs."""
        from engine.config import preset_names
        from engine.experts.registry import expert_status, load_experts
        from engine.hardware import Sampler

        ws = self.gladius.ws
        gpus = Sampler().read(None, ws.root).gpus
        labels: dict[str, str] = {}
        error = ""
        try:
            for name, spec in load_experts(ws).items():
                state = expert_status(ws, spec).state
                labels[name] = spec.title + ("" if state == "ready" else f"  ({state})")
        except (GladiusError, OSError) as problem:
            labels, error = {}, str(problem)
        self.post_message(OptionsRead(preset_names(), labels, gpus, error))

    def on_options_read(self, message: OptionsRead) -> None:
        if not self.composed:
            return
        self._gpus = message.gpus
        if message.error:
            self.notice.show(message.error, "error")
        first = not self.form.ready
        self.form.set_options(message.presets, message.experts)
        if first:
            self._fill_from_command()
            self.form.focus_first()
        self.assess()

    def _fill_from_command(self) -> None:
        """Show the `train` command that opened the app, or was started since.

        A command that was refused at once has exited by now; it is shown to be corrected here.
        """
        argvs = [self.gladius.opened_with, *self.gladius.launched]
        train = self.gladius.commands.get("train")
        commands = [argv for argv in argvs if argv and argv[0] == "train"]
        if train is not None and commands:
            context = train.make_context("train", list(commands[-1][1:]), resilient_parsing=True)
            self.form.fill(context.params)

    def on_train_form_changed(self, _: TrainForm.Changed) -> None:
        self.assess()

    def assess(self, after: float = _SETTLE_SECONDS) -> None:
        """Check the form, once it has not changed for `after` seconds."""
        if self.composed and self.form.ready:
            self._assess(self.form.value, after)

    @work(thread=True, exclusive=True, group="assess", exit_on_error=False)
    def _assess(self, form: Form, after: float) -> None:
        from gladius_tui.app.model.preflight import assess

        worker = get_current_worker()
        time.sleep(after)
        if worker.is_cancelled:
            return
        assessment = assess(self.gladius.ws, form, self._gpus)
        if not worker.is_cancelled:
            self.post_message(FormAssessed(assessment))

    def on_form_assessed(self, message: FormAssessed) -> None:
        if not self.composed:
            return
        self.assessment = message.assessment
        self.form.set_preset_experts(message.assessment.experts)
        self.form.mark_bad(message.assessment.bad_fields)
        self.show_assessment()
        self.refresh_bindings()
        self.assessed(message.assessment)

    def assessed(self, assessment: Assessment) -> None:
        """The form was assessed."""

    def show_assessment(self) -> None:
        """Redraw the preflight checks and the command."""
        if self.assessment is None:
            return
        training = "train" in self.gladius.watcher.jobs
        self.query_one(PreflightPane).show(self.assessment, training)
        try:
            command = shlex.join(["gladius_train", *self.assessment.form.argv()])
        except ValueError as error:
            command = str(error)
        if command != self._command:
            self._command = command
            self.query_one("#command", Static).update(Text(command))


class RunStarter(RunForm):
    """Starts the run of the form: once it is assessed as it is now, and its experts are here."""

    def __init__(self) -> None:
        super().__init__()
        self._starting: Literal["", "asked", "fetching"] = ""
        """asked: start as soon as the form is assessed; fetching: once the experts are here."""
        self._shown_problem = ""
        """The problem of the form that the notice shows."""

    def action_start(self) -> None:
        self._starting = "asked"
        self.assess(after=0)

    def assessed(self, assessment: Assessment) -> None:
        if self._shown_problem and self._shown_problem not in assessment.problems:
            if self.notice.text == self._shown_problem:
                self.notice.clear()
            self._shown_problem = ""
        starting, self._starting = self._starting, ""
        if not starting:
            return
        launched = any(job_of(argv) == "download" for argv in self.gladius.launched)
        downloading = launched or "download" in self.gladius.watcher.jobs
        if not assessment.problems:
            self.gladius.launch(self.command_line())
        elif assessment.fetch and downloading:
            self._starting = "fetching"
            self.notice.show("the run starts when the download or verification has ended")
        elif assessment.fetch and starting == "asked":
            self._offer_fetch(assessment)
        else:
            self._shown_problem = assessment.problems[0]
            self.notice.show(self._shown_problem, "error")

    def _offer_fetch(self, assessment: Assessment) -> None:
        """Ask whether the missing experts are fetched, so that the run can start."""
        from gladius_tui.app.dialogs.choice import Choice

        names = ", ".join(assessment.fetch)
        amount = f" ({size(assessment.fetch_bytes)})" if assessment.fetch_bytes else ""
        answers = [("fetch", f"Fetch {names}{amount}, then start")]
        if assessment.ready:
            answers.append(("without", f"Train with {', '.join(assessment.ready)} only"))
        answers.append(("no", "Not now"))

        def answered(answer: str | None) -> None:
            if answer == "fetch" and self.gladius.launch(["download", *assessment.fetch]):
                self._starting = "fetching"
                self.notice.show(f"fetching {names}; the run starts when that has ended")
            elif answer == "without":
                self.form.choose_experts(assessment.ready)
                self.action_start()

        text = f"Not on this machine yet: {names}."
        self.app.push_screen(Choice("Fetch first", text, answers), answered)

    def download_ended(self, ended: Ended) -> bool:
        """A download has ended, which the run may wait for; True if its error is shown."""
        if self._starting != "fetching":
            return False
        if ended.error:
            self._starting = ""
            self.notice.show(f"nothing was started: {ended.error}", "error")
        else:
            self.notice.clear()
        self.read_options()
        return bool(ended.error)


class TrainScreen(RunStarter):
    """A run as a form, with keys to start it or to resume the unfinished run."""

    MODE = "train"
    CSS_PATH = "train.tcss"
    BINDINGS: ClassVar = [
        Binding("ctrl+s,s", "start", "Start", id="train.start",
                tooltip="Start this run; an unfinished run of the same config is resumed"),
        Binding("ctrl+r,r", "resume", "Resume", id="train.resume",
                tooltip="Resume the unfinished run, with its own config"),
        Binding("ctrl+n,n", "fresh", "Start fresh", id="train.fresh",
                tooltip="Start at step 0; the previous run is moved aside (asks first)"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._launching = False

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "train", "download")
        for argv in self.gladius.launched:
            self.launch_begun(argv)

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    def about(self) -> str:
        return (
            "A run as a form: a preset, and changes to it. Problems are shown as you type, and "
            "whether memory and disk are sufficient. An expert that is missing is fetched first if "
            "you agree. The run is a process of its own: it keeps running when this app is closed. "
            "tab and shift+tab move between fields, space selects an expert, enter opens a list."
        )

    def theme_changed(self) -> None:
        self.show_assessment()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("start", "fresh", "resume"):
            return "train" not in self.gladius.watcher.jobs and not self._launching
        return super().check_action(action, parameters)

    def key_label(self, action: str, label: str) -> str:
        nothing_stored = self.assessment is not None and self.assessment.stored is None
        return "" if action == "resume" and nothing_stored else label

    def action_resume(self) -> None:
        self.gladius.launch(["resume"])

    def action_fresh(self) -> None:
        from gladius_tui.app.dialogs.choice import Choice

        text = "It starts at step 0. A previous run on this root is moved aside, not deleted."
        if self.assessment is not None and self.assessment.stored is not None:
            step, preset = self.assessment.stored
            text = f"The run of {preset} (step {step:,}) is moved aside, not deleted."

        def answered(answer: str | None) -> None:
            if answer == "fresh":
                self.gladius.launch([*self.command_line(), "--fresh"])

        answers = [("keep", "Keep the previous run"), ("fresh", "Start fresh")]
        self.app.push_screen(Choice("Start fresh", text, answers), answered)

    def launch_begun(self, argv: Sequence[str]) -> None:
        if job_of(argv) == "train":
            self._launching = True
            self.notice.show(_STARTING)
            self.refresh_bindings()

    def on_job_attached(self, message: JobAttached) -> None:
        if message.job == "train":
            self.notice.clear()
            if self._launching and self.is_current:
                self.gladius.action_mode("dashboard")
            self._launching = False
            self.assess()

    def on_job_detached(self, _: JobDetached) -> None:
        self.read_options()

    def launch_ended(self, ended: Ended) -> bool:
        if ended.job == "download":
            return self.download_ended(ended)
        if ended.job != "train":
            return False
        self._launching = False
        if ended.error:
            self.notice.show(ended.error, "error")
        elif self.notice.text == _STARTING:
            self.notice.clear()
        self.refresh_bindings()
        self.assess()
        return True
