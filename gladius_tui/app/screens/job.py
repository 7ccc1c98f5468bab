"""Owns what the screens of short jobs (download, export, validate) share: their events, from the
run's first on, the last run's while none runs, and the line that tells what went wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from textual import work
from textual.message import Message
from textual.widgets import Static

from engine.events import AnyEvent, Job, Progress, RunEnded, RunStarted, Stop
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.watch import CommandAnswered, JobAttached, JobDetached, JobEvents
from gladius_tui.launch import Ended, job_of

Tone = Literal["", "error", "warning", "done"]
_PAGE = 2000


class Notice(Static):
    """A line or more about what has just happened; hidden while there is nothing to say."""

    DEFAULT_CSS = """
    Notice { height: auto; max-height: 8; padding: 0 1; display: none; &.-on { display: block; } }
    """

    def __init__(self, id: str = "notice") -> None:
        super().__init__(id=id, classes="notice", markup=False)
        self.text = ""

    def say(self, text: str, tone: Tone = "") -> None:
        """Show `text`; "" hides the line."""
        self.text = text
        marks = {"error": "✗ ", "warning": "! ", "done": "✓ ", "": ""}
        self.update(marks[tone] + text)
        for name in ("error", "warning", "done"):
            self.set_class(tone == name, f"-{name}")
        self.set_class(bool(text), "-on")


class LastRun(Message, bubble=False):
    """The events of the last run of a job, none of which runs now."""

    def __init__(self, run_id: str, events: Sequence[AnyEvent]) -> None:
        self.run_id = run_id
        self.events = events
        super().__init__()


class JobScreen(GladiusScreen):
    """A screen of one job. Subclasses set JOB and write `begin`, `take` and `show`.

    `begin` forgets the former run, `take` notes an event, `show` draws what was noted: once for
    all events that come together.
    """

    JOB: ClassVar[Job] = "download"

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.live = False
        """Whether the job runs."""
        self.launching = False
        """Whether it was started here and is not attached yet."""
        self.run_id = ""
        self.ended: RunEnded | None = None
        self.tasks: dict[str, Progress] = {}
        """The newest Progress of each task, in the order of their beginning."""

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, self.JOB, replay=True)
        for argv in self.gladius.launched:
            self.launch_begun(argv)
        self.show()
        self._read_last()

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    # What screens write

    def begin(self) -> None:
        """Forget the former run."""

    def take(self, event: AnyEvent) -> None:
        """Note an event."""

    def show(self) -> None:
        """Draw what was noted."""

    # What they share

    def theme_changed(self) -> None:
        self.show()

    def start(self, argv: Sequence[str]) -> None:
        """Start the job with this command."""
        if self.live or self.launching:
            self.notice.say(f"{self.JOB} runs already", "warning")
            return
        self.gladius.launch(argv)
        self.show()

    def ask_stop(self) -> None:
        """Ask the job to end."""
        if self.live:
            self.notice.say("asked to stop…")
            self.gladius.watcher.ask(self, self.JOB, Stop())

    @work(thread=True, exit_on_error=False)
    def _read_last(self) -> None:
        from engine.run.history import History

        history = History(self.gladius.ws.history_file)
        try:
            record = history.last_run(self.JOB)
            if record is None:
                return
            events: list[AnyEvent] = []
            while page := history.events(record.run_id, events[-1].seq if events else 0, _PAGE):
                events += page
        finally:
            history.close()
        self.post_message(LastRun(record.run_id, events))

    def on_last_run(self, message: LastRun) -> None:
        if not self.live and message.run_id != self.run_id:
            self._begin(message.run_id)
            self._take(message.events)

    def on_job_attached(self, message: JobAttached) -> None:
        self.live, self.launching = True, False
        self._begin(message.run_id)
        self.notice.say("")
        self.refresh_bindings()
        self.show()

    def on_job_events(self, message: JobEvents) -> None:
        self._take(message.events)

    def on_job_detached(self, message: JobDetached) -> None:
        self.live = False
        self._tell_end()
        self.refresh_bindings()
        self.show()

    def on_command_answered(self, message: CommandAnswered) -> None:
        if message.error:
            self.notice.say(message.error, "error")

    def launch_begun(self, argv: Sequence[str]) -> None:
        if job_of(argv) == self.JOB and not self.live:
            self.launching = True
            self.notice.say("starting…")
            self.refresh_bindings()

    def launch_ended(self, ended: Ended) -> bool:
        if ended.job == self.JOB:
            self.launching = False
            if ended.error:
                self.notice.say(ended.error, "error")
            elif self.notice.text == "starting…":
                self.notice.say("")
            self.refresh_bindings()
            self.show()
            self._read_last()  # it may have been over before it could be attached to
        return ended.job == self.JOB

    def _begin(self, run_id: str) -> None:
        self.run_id, self.ended, self.tasks = run_id, None, {}
        self.begin()

    def _take(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            match event:
                case RunStarted():
                    self.ended, self.tasks = None, {}
                    self.begin()
                case Progress():
                    self.tasks[event.task] = event
                case RunEnded():
                    self.ended = event
            self.take(event)
        self.show()

    def _tell_end(self) -> None:
        ended = self.ended
        if ended is None:
            self.notice.say("it ended without a word; see the log in tmp/logs", "error")
        elif ended.status == "failed":
            self.notice.say(ended.reason or "it failed; see the log in tmp/logs", "error")
        elif ended.status == "stopped":
            self.notice.say(ended.reason or "stopped; the same command goes on with it", "warning")
        else:
            self.notice.say("")
