"""The dialog that is shown on quitting while jobs run."""

from __future__ import annotations

from textual.widgets import OptionList, Static

from engine.events import Stop
from engine.run.job import JOBS
from gladius_tui.app.dialogs.choice import Choice
from gladius_tui.app.job_messages import CommandAnswered
from gladius_tui.app.services import services


class Leave(Choice):
    """Leave the jobs running (default), stop them with a checkpoint, or cancel.

    With `stop` the second answer is selected, and ctrl+c confirms it. While the app waits for the
    jobs to stop, ctrl+c (or q) quits at once: the jobs end by themselves.
    """

    def __init__(self, stop: bool) -> None:
        super().__init__(
            "Quit",
            "",
            [
                ("leave", "Leave it running"),
                ("stop", "Stop with a checkpoint"),
                ("stay", "Cancel"),
            ],
            selected="stop" if stop else "leave",
        )
        self._stopping: set[str] = set()

    def on_mount(self) -> None:
        titles = [f"the {JOBS[job].title}" for job in services(self).watcher.jobs] or ["the job"]
        subject = " and ".join(titles)
        keep = "keep" if titles[1:] else "keeps"
        self.query_one(Static).update(
            f"{subject[:1].upper()}{subject[1:]} {keep} running without a terminal."
        )

    def key_again(self, stop: bool) -> None:
        """Ctrl+C (`stop`) or q was pressed again."""
        if self._stopping or not stop:
            self.app.exit(0)
        else:
            self.take_selected()

    def dismiss(self, result: str | None = None):  # type: ignore[override]
        """Act on the answer here: quitting the app also ends the dialog."""
        if result == "leave":
            self.app.exit(0)
        elif result == "stop":
            self._stop_jobs()
        else:
            return super().dismiss(result)

    def _stop_jobs(self) -> None:
        watcher = services(self).watcher
        if not watcher.jobs:
            self.app.exit(0)
        self._stopping = set(watcher.jobs)
        self.query_one(Static).update(
            "Stopping and saving. The app quits when that is done; ctrl+c quits now, and the job "
            "stops by itself."
        )
        self.query_one(OptionList).display = False
        for job in watcher.jobs:
            watcher.send(self, job, Stop())

    def on_command_answered(self, message: CommandAnswered) -> None:
        self._stopping.discard(message.job)
        if not self._stopping:
            self.app.exit(0)
