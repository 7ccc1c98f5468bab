"""Read one job's events from its runner, in a thread, until the runner exits."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from engine.errors import GladiusError
from engine.events import (
    AnyEvent,
    Job,
    PhaseStarted,
    Progress,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
)
from engine.workspace import Workspace
from gladius_tui.app.model.job_info import JobInfo

if TYPE_CHECKING:  # imports sqlite3, which the first paint does not wait for
    from engine.run.control import Attachment

_BATCH_SECONDS = 0.1
"""Events of this long are delivered together."""
_IDLE_SECONDS = 0.5
"""Longest wait for an event while nothing is to be delivered."""
_INFO_SECONDS = 0.5
"""Least time between two updates of the job's JobInfo."""
_PAGE = 1000


class JobSink(Protocol):
    """Receives what a `JobReader` reads; called in the reader's thread."""

    stopped: threading.Event

    def deliver(self, reader: JobReader, events: Sequence[AnyEvent]) -> None:
        """Hand events to the subscribers and set `reader.delivered_seq`."""

    def update_info(self, job: Job, info: JobInfo | None) -> None:
        """The job's state has changed."""

    def detach(self, reader: JobReader) -> None:
        """The runner has exited."""


class JobReader:
    """Reads one job's events until its runner has exited."""

    def __init__(self, sink: JobSink, ws: Workspace, job: Job, attachment: Attachment) -> None:
        self._sink, self._ws, self._attachment = sink, ws, attachment
        self.job: Job = job
        self.run_id = attachment.run_id
        self.pid = attachment.pid
        self.delivered_seq = attachment.seq
        """Number of the last event that was delivered."""
        self.info = self._read_info()
        """The job's state as last reported to the sink."""

    def run(self) -> None:
        """Deliver events in batches until the runner exits or the sink is stopped."""
        info = self.info
        batch: list[AnyEvent] = []
        delivered_at = reported_at = 0.0
        try:
            while not self._sink.stopped.is_set():
                timeout = _BATCH_SECONDS if batch else _IDLE_SECONDS
                event = next(self._attachment.events(timeout), None)
                if event is not None:
                    batch.append(event)
                    info = info.after(event)
                elif self._attachment.ended:
                    break
                now = time.monotonic()
                if batch and now - delivered_at > _BATCH_SECONDS:
                    self._sink.deliver(self, batch)
                    batch, delivered_at = [], now
                    if now - reported_at > _INFO_SECONDS or info.status != self.info.status:
                        self.info, reported_at = info, now
                        self._sink.update_info(self.job, info)
            if batch:
                self._sink.deliver(self, batch)
        except GladiusError:
            pass  # a runner of another version, whose messages can't be read
        finally:
            self._attachment.close()
            self._sink.detach(self)

    def _read_info(self) -> JobInfo:
        """The job's state from the history, up to where the live events begin."""
        from engine.run.history import History

        history = History(self._ws.history_file)
        try:
            kinds = (RunStarted, PhaseStarted, Progress, StepDone, RunPaused, RunResumed)
            found = [history.last(self.run_id, kind.__name__) for kind in kinds]
        finally:
            history.close()
        info = JobInfo(job=self.job, run_id=self.run_id, pid=self.pid)
        known = [event for event in found if event is not None and event.seq <= self.delivered_seq]
        for event in sorted(known, key=lambda event: event.seq):
            info = info.after(event)
        return info

    def read_history(self) -> list[AnyEvent]:
        """The run's events from the first to those that were delivered by now, or later."""
        from engine.run.history import History

        history = History(self._ws.history_file)
        events: list[AnyEvent] = []
        try:
            while page := history.events(self.run_id, events[-1].seq if events else 0, _PAGE):
                events += page
        finally:
            history.close()
        return events
