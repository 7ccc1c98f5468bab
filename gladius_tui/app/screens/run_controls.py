"""The Dashboard's keys that control the run: pause, checkpoint, stop, finish, resume."""

from __future__ import annotations

from typing import ClassVar, Literal

from textual.binding import Binding

from engine.events import AnyCommand, Checkpoint, Pause, Resume, Stop
from engine.run.view import LogEntry, resume_text
from gladius_tui.app.job_messages import CommandAnswered
from gladius_tui.app.screens.run_display import RunDisplay, wall_clock
from gladius_tui.app.widgets.pane import Pane

_CONTROL_ACTIONS = ("pause", "checkpoint", "stop", "finish")
_RESULTS = {"pause": "paused at", "resume": "resumed at", "checkpoint": "saved at"}


class RunControls(RunDisplay):
    """A run's display with keys that control it."""

    BINDINGS: ClassVar = [
        Binding("p", "pause", "Pause", id="dashboard.pause",
                tooltip="Pause after the current step, or resume"),
        Binding("c", "checkpoint", "Checkpoint", id="dashboard.checkpoint",
                tooltip="Save a checkpoint after the current step"),
        Binding("s", "stop", "Stop", id="dashboard.stop",
                tooltip="Save a checkpoint and stop; asks first"),
        Binding("f", "finish", "Finish", id="dashboard.finish",
                tooltip="Decay the learning rate, then save the model; asks first"),
        Binding("r", "resume", "Resume", id="dashboard.resume",
                tooltip="Resume the stopped run from its newest checkpoint"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.pending_commands: dict[str, str] = {}
        """Commands that were sent and not answered yet: the text to show for each, by name."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "resume":
            run = self.run_view
            can_resume = run is not None and run.status in ("ended", "failed")
            return can_resume and not self.attached_run and not self.viewed_run
        return super().check_action(action, parameters)

    def key_label(self, action: str, label: str) -> str:
        if action in _CONTROL_ACTIONS and not self.attached_run:
            return ""
        if action == "pause" and self._is_paused:
            return "Resume"
        return label

    @property
    def _is_paused(self) -> bool:
        return self.run_view is not None and self.run_view.status == "paused"

    def action_pause(self) -> None:
        if self._is_paused:
            self._send(Resume(), "resume")
        else:
            self._send(Pause(), "pause")

    def action_resume(self) -> None:
        run = self.run_view
        self.gladius.launch(["resume"])
        if run is not None:
            text = f"When libraries and models are loaded: {resume_text(run)}"
            self.notify(text, title="Resume", markup=False)

    def action_checkpoint(self) -> None:
        self._send(Checkpoint(), "checkpoint")

    def action_stop(self) -> None:
        text = "The run saves a checkpoint and stops. `resume` continues from there."
        self._confirm("Stop", text, Stop())

    def action_finish(self) -> None:
        text = (
            "The learning rate decays over the last steps, then the model is saved. `resume` can "
            "later continue from before the decay."
        )
        self._confirm("Finish", text, Stop(finish=True))

    def _confirm(self, title: str, text: str, command: AnyCommand) -> None:
        """Send the command if the user confirms it."""
        from gladius_tui.app.dialogs.choice import Choice

        if not self._require_run():
            return

        def answered(choice: str | None) -> None:
            if choice == "yes":
                self._send(command, title.lower())

        answers = [("yes", f"{title} the run"), ("no", "Keep it running")]
        key = title[0].lower()
        dialog = Choice(title, text, answers, selected="yes", confirm_key=key)
        self.app.push_screen(dialog, answered)

    def _require_run(self) -> bool:
        """Whether the shown run is attached; a notification if not."""
        if self.viewed_run:
            text = "This is an earlier run. Press h and open the newest one."
            self.notify(text, severity="warning", markup=False)
            return False
        if not self.attached_run:
            text = "No training run is active. Press 3 to start one."
            self.notify(text, severity="warning", markup=False)
        return bool(self.attached_run)

    def _send(self, command: AnyCommand, name: str) -> None:
        if not self._require_run() or _name(command) in self.pending_commands:
            return
        self.pending_commands[_name(command)] = f"{name} requested …"
        self._show_pending()
        self.gladius.watcher.send(self, "train", command)

    def on_command_answered(self, message: CommandAnswered) -> None:
        name = _name(message.command)
        self.pending_commands.pop(name, None)
        level: Literal["good", "error"] = "good"
        if message.event is None:
            text, level = f"{name}: {message.error}", "error"
            self.notify(message.error, severity="error", markup=False)
        else:
            result = _RESULTS.get(name, "stopped at")
            text = f"{name} requested → {result} step {message.event.step:,}"
        if self.run_view is not None:
            self.run_view.log.append(LogEntry(wall_clock(), level, text))
            self.run_view.logged += 1
        self._show_pending()
        self.mark_changed("log", "run")

    def runner_exited(self) -> None:
        self.pending_commands.clear()
        self._show_pending()
        self.mark_changed()

    def _show_pending(self) -> None:
        pane = self.query_one("#run-pane", Pane)
        text = " · ".join(self.pending_commands.values())
        if text != (pane.border_subtitle or ""):
            pane.border_subtitle = text


def _name(command: AnyCommand) -> str:
    name = type(command).__name__.lower()
    return "finish" if isinstance(command, Stop) and command.finish else name
