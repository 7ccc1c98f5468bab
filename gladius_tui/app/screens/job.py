"""The base of the screens of short jobs (download, export, validate).

They show the events of the running job from its first event on; while none runs, those of the last
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import work
from textual.message import Message

from engine.events import AnyEvent, Job, Progress, RunEnded, RunStarted, Stop
from gladius_tui.app.job_messages import CommandAnswered, JobAttached, JobDetached, JobEvents
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.widgets.notice import Notice
from gladius_tui.launch import Ended, job_of

_STARTING = "starting…"


@dataclass(eq=False)
class LastRunRead(Message, bubble=False):
    """The last run of a job was read from the history."""

    run_id: str
    events: Sequence[AnyEvent]


class JobFollower(GladiusScreen):
    """A screen that follows one job. Subclasses set JOB and override the methods below."""

    JOB: ClassVar[Job] = "download"

    def __init__(self) -> None:
        super().__init__()
        self.live = False
        """Whether the job runs."""
        self.run_id = ""
        self.ended: RunEnded | None = None
        self.tasks: dict[str, Progress] = {}
        """The newest Progress of each task, in the order in which the tasks began."""

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, self.JOB, replay=True)

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    # For subclasses

    def run_begun(self) -> None:
        """Forget the previous run."""

    def take_event(self, event: AnyEvent) -> None:
        """Take in an event."""

    def show(self) -> None:
        """Redraw; called once for all events that arrive together."""

    def job_attached(self) -> None:
        """The job is running."""

    def job_detached(self) -> None:
        """The job's runner has exited."""

    # Following

    @work(thread=True, exit_on_error=False)
    def read_last_run(self) -> None:
        """Read the job's last run from the history."""
        from gladius_tui.app.model.past_runs import read_last_run

        if (last := read_last_run(self.gladius.ws, self.JOB)) is not None:
            self.post_message(LastRunRead(*last))

    def on_last_run_read(self, message: LastRunRead) -> None:
        if not self.live and message.run_id != self.run_id:
            self._begin_run(message.run_id)
            self._take_events(message.events)

    def on_job_attached(self, message: JobAttached) -> None:
        self.live = True
        self._begin_run(message.run_id)
        self.job_attached()

    def on_job_events(self, message: JobEvents) -> None:
        self._take_events(message.events)

    def on_job_detached(self, _: JobDetached) -> None:
        self.live = False
        self.job_detached()

    def _begin_run(self, run_id: str) -> None:
        self.run_id, self.ended, self.tasks = run_id, None, {}
        self.run_begun()

    def _take_events(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            match event:
                case RunStarted():
                    self.ended, self.tasks = None, {}
                    self.run_begun()
                case Progress():
                    self.tasks[event.task] = event
                case RunEnded():
                    self.ended = event
            self.take_event(event)
        self.show()


class JobScreen(JobFollower):
    """A screen that starts, stops and follows one job, with a line for its outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.launching = False
        """Whether the job was started here and is not attached yet."""

    def on_mount(self) -> None:
        for argv in self.gladius.launched:
            self.launch_begun(argv)
        self.show()
        self.read_last_run()

    def theme_changed(self) -> None:
        self.show()

    def start(self, argv: Sequence[str]) -> None:
        """Start the job with this command."""
        if self.live or self.launching:
            self.notice.show(f"{self.JOB} is already running", "warning")
            return
        self.gladius.launch(argv)
        self.show()

    def request_stop(self) -> None:
        """Ask the job to stop."""
        if self.live:
            self.notice.show("stopping…")
            self.gladius.watcher.send(self, self.JOB, Stop())

    def job_attached(self) -> None:
        self.launching = False
        self.notice.clear()
        self.refresh_bindings()
        self.show()

    def job_detached(self) -> None:
        self._show_end()
        self.refresh_bindings()
        self.show()

    def on_command_answered(self, message: CommandAnswered) -> None:
        if message.error:
            self.notice.show(message.error, "error")

    def launch_begun(self, argv: Sequence[str]) -> None:
        if job_of(argv) == self.JOB and not self.live:
            self.launching = True
            self.notice.show(_STARTING)
            self.refresh_bindings()

    def launch_ended(self, ended: Ended) -> bool:
        if ended.job == self.JOB:
            self.launching = False
            if ended.error:
                self.notice.show(ended.error, "error")
            elif self.notice.text == _STARTING:
                self.notice.clear()
            self.refresh_bindings()
            self.show()
            self.read_last_run()  # the job may have ended before it could be attached to
        return ended.job == self.JOB

    def _show_end(self) -> None:
        ended = self.ended
        if ended is None:
            self.notice.show(f"{self.JOB} was killed; see the log in tmp/logs", "error")
        elif ended.status == "failed":
            self.notice.show(ended.reason or f"{self.JOB} failed; see the log in tmp/logs", "error")
        elif ended.status == "stopped":
            text = ended.reason or "stopped; run the same command again to continue"
            self.notice.show(text, "warning")
        else:
            self.notice.clear()
