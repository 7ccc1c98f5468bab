"""Follow one training run: read it from the history, then take in its live events."""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual import work

from engine.events import AnyEvent
from engine.run.view import RunView
from gladius_tui.app.job_messages import JobAttached, JobDetached, JobEvents
from gladius_tui.app.screens.base import GladiusScreen


class RunFollower(GladiusScreen):
    """A screen with a `RunView` of the running training run, or of the last one.

    Subclasses override `run_loading`, `run_loaded`, `events_taken` and `runner_exited`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_view: RunView | None = None
        self.attached_run = ""
        """Id of the run that is followed live; empty if none runs."""
        self.viewed_run = ""
        """Id of an earlier run that was opened from the list; empty while the newest is shown."""
        self.load_ticket = ""
        """Identifies the reading in progress, so that the answer of an older one is dropped."""
        self._newest_run = ""
        """Id of the newest run, once it is known."""
        self._unread: list[AnyEvent] = []
        """Live events that arrived while the history was being read."""

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "train")

    # For subclasses

    def run_loading(self) -> None:
        """A run is being read from the history."""

    def run_loaded(self) -> None:
        """`run_view` was read from the history; None if there is no run."""

    def events_taken(self, events: Sequence[AnyEvent]) -> None:
        """`run_view` has taken in these live events."""

    def runner_exited(self) -> None:
        """The runner of the followed run has exited."""

    # Reading and following

    def load_last_run(self) -> None:
        """Read the last run, unless a run is being read already."""
        if not self.load_ticket:
            self._load("", None)

    def on_job_attached(self, message: JobAttached) -> None:
        self.attached_run = message.run_id
        self.viewed_run = ""
        self._unread = []
        self._load(message.run_id, message.seq)

    def open_run(self, run_id: str) -> None:
        """Show a run of the history; the running one, and the newest, are followed again."""
        newest = self.attached_run or self._newest_run
        self.viewed_run = "" if run_id == newest else run_id
        self._unread = []
        self._load(run_id, None)

    def on_job_events(self, message: JobEvents) -> None:
        if message.run_id != self.attached_run:
            return
        if self.viewed_run:
            message.take()  # they are read from the history when the run is opened again
            return
        events = message.events
        if self.load_ticket:
            self._unread.extend(events)
        else:
            self.take_events(events)

    def on_job_detached(self, message: JobDetached) -> None:
        if message.run_id != self.attached_run:
            return
        self.attached_run = ""
        self._newest_run = message.run_id
        if self.run_view is not None and not self.load_ticket and not self.viewed_run:
            self.run_view.mark_killed()
        self.runner_exited()

    def _load(self, run_id: str, seq: int | None) -> None:
        """Read a run ("": the last one) up to event `seq` (None: all)."""
        self.load_ticket = f"{run_id}:{seq}:{time.monotonic_ns()}"
        self.run_loading()
        self._read(self.load_ticket, run_id, seq)

    @work(thread=True, exclusive=True, group="run", exit_on_error=False)
    def _read(self, ticket: str, run_id: str, seq: int | None) -> None:
        from engine.run.lock import lock_owner
        from gladius_tui.app.model.past_runs import read_run_view

        run = read_run_view(self.gladius.ws, run_id, seq)
        owner = None if self.viewed_run else lock_owner(self.gladius.ws, "train")
        if run is not None and seq is None and owner is None:
            run.mark_killed()
        elif run is not None and owner is not None:
            run.mark_restarted(owner.since)
        self.app.call_later(self._loaded, ticket, run)

    def _loaded(self, ticket: str, run: RunView | None) -> None:
        if ticket != self.load_ticket:
            return
        self.load_ticket = ""
        if run is None and self.attached_run:
            run = RunView(run_id=self.attached_run)  # nothing of it has been written yet
        self.run_view = run
        if run is not None and not self.viewed_run:
            self._newest_run = run.run_id
        self.run_loaded()
        if run is not None:
            unread, self._unread = self._unread, []
            self.take_events(unread)

    def take_events(self, events: Sequence[AnyEvent]) -> None:
        """Take in live events; those that were read from the history are skipped."""
        run = self.run_view
        if run is None:
            return
        new = [event for event in events if not event.seq or event.seq > run.seq]
        run.take(new)
        self.events_taken(new)
