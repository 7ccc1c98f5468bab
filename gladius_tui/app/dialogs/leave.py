"""Owns the question that is asked on leaving while jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.widgets import Static

from engine.events import Stop
from engine.run.job import JOBS
from gladius_tui.app.dialogs.choice import Choice
from gladius_tui.app.watch import CommandAnswered

if TYPE_CHECKING:
    from gladius_tui.app.app import GladiusApp


class Leave(Choice):
    """Leave it running (default), stop with a checkpoint, or stay.

    With `stop` the second is marked, and ctrl+c again takes it. While a stop is waited for, ctrl+c
    (or q) leaves at once: the job ends by itself.
    """

    def __init__(self, stop: bool) -> None:
        super().__init__(
            "Leave",
            "",
            [
                ("leave", "Leave it running"),
                ("stop", "Stop with a checkpoint"),
                ("stay", "Stay"),
            ],
            marked="stop" if stop else "leave",
        )
        self._waiting: set[str] = set()

    def on_mount(self) -> None:
        app = cast("GladiusApp", self.app)
        jobs = [f"the {JOBS[job].title}" for job in app.watcher.jobs] or ["what was started"]
        said = f"{' and '.join(jobs)} {'go on by themselves' if jobs[1:] else 'goes on by itself'}"
        self.query_one(Static).update(f"{said[:1].upper()}{said[1:]}: no terminal is needed.")

    def again(self, stop: bool) -> None:
        """Ctrl+C (`stop`) or q once more."""
        if self._waiting or not stop:
            self.app.exit(0)
        else:
            self.take_marked()

    def dismiss(self, result: str | None = None):  # type: ignore[override]
        """What the answer means is done here: leaving the app is the end of the dialog too."""
        if result == "leave":
            self.app.exit(0)
        elif result == "stop":
            self._stop()
        else:
            return super().dismiss(result)

    def _stop(self) -> None:
        app = cast("GladiusApp", self.app)
        if not app.watcher.jobs:
            self.app.exit(0)
        self._waiting = set(app.watcher.jobs)
        self.query_one(Static).update(
            "Asked to stop; saving. It leaves when that is done; ctrl+c leaves now, and the job "
            "ends by itself."
        )
        self.query_one("OptionList").display = False
        for job in app.watcher.jobs:
            app.watcher.ask(self, job, Stop())

    def on_command_answered(self, message: CommandAnswered) -> None:
        self._waiting.discard(message.job)
        if not self._waiting:
            self.app.exit(0)
