"""Messages about jobs that `JobWatcher` posts to its subscribers.

Textual sets attributes on a message while it is delivered, so these dataclasses are not frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from textual.message import Message

from engine.events import AnyCommand, AnyEvent, Job


@dataclass(eq=False)
class JobAttached(Message, bubble=False):
    """A job is running. Its events up to `seq` are in the history; later ones come as JobEvents."""

    job: Job
    run_id: str
    pid: int
    """Process id of the runner."""
    seq: int


@dataclass(eq=False)
class JobEvents(Message, bubble=False):
    """Events of a job, in order: all that arrived since the previous message was handled."""

    job: Job
    run_id: str
    take: Callable[[], tuple[AnyEvent, ...]]
    """Removes the events from the queue; called once, by `events`."""

    @cached_property
    def events(self) -> tuple[AnyEvent, ...]:
        """The events; the queue is emptied on the first access."""
        return self.take()


@dataclass(eq=False)
class JobDetached(Message, bubble=False):
    """The runner of a job has exited, and all its events were delivered."""

    job: Job
    run_id: str


class JobsChanged(Message, bubble=False):
    """`JobWatcher.jobs` has changed."""


@dataclass(eq=False)
class CommandAnswered(Message, bubble=False):
    """A job executed a command (`event` names the step), or the command failed (`error`)."""

    job: Job
    command: AnyCommand
    event: AnyEvent | None
    error: str = ""
