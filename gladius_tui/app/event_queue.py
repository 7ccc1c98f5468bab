"""A queue of a job's events for one subscriber."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from textual.message import Message
from textual.message_pump import MessagePump

from engine.events import AnyEvent, Job
from gladius_tui.app.job_messages import JobEvents


class EventQueue:
    """Collects events and posts at most one unhandled `JobEvents`, however slow the subscriber is.

    With `replay` the queue posts nothing until `replay_history` has supplied the earlier events.
    """

    def __init__(self, target: MessagePump, job: Job, run_id: str, *, replay: bool = False) -> None:
        self._target, self._run_id = target, run_id
        self._job: Job = job
        self._lock = threading.RLock()
        self._pending: deque[AnyEvent] = deque()
        self._message_posted = False
        self._replayed_seq = 0
        self._last_message: Message | None = None
        self._awaiting_history = replay

    def replay_history(self, past: Sequence[AnyEvent]) -> None:
        """Deliver the history, then the live events that arrived meanwhile.

        The history may already hold some of the live events; those are delivered once.
        """
        with self._lock:
            self._replayed_seq = last_seq = past[-1].seq if past else 0
            later = [event for event in self._pending if event.seq > last_seq]
            self._pending = deque([*past, *later])
            self._awaiting_history = False
            self.put(())
            if self._last_message is not None:
                self._target.post_message(self._last_message)

    def close(self, message: Message) -> None:
        """Post `message` after all events; a job can end before its history was read."""
        with self._lock:
            if self._awaiting_history:
                self._last_message = message
                return
        self._target.post_message(message)

    def put(self, events: Sequence[AnyEvent]) -> None:
        """Add events, and post a message unless one is still unhandled."""
        with self._lock:
            self._pending.extend(event for event in events if event.seq > self._replayed_seq)
            if self._message_posted or self._awaiting_history or not self._pending:
                return
            self._message_posted = True
        self._target.post_message(JobEvents(self._job, self._run_id, self._take))

    def _take(self) -> tuple[AnyEvent, ...]:
        with self._lock:
            events = tuple(self._pending)
            self._pending.clear()
            self._message_posted = False
        return events
