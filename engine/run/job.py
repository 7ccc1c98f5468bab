"""Owns what somebody asked of a training job, and standing still while it is paused.

It does not own what is then done: the trainer saves and ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from engine.events import (
    AnyCommand,
    Checkpoint,
    Event,
    Pause,
    Resume,
    RunPaused,
    RunResumed,
    Stop,
)


class Link(Protocol):
    """The worker's side of the hall, as far as a training job needs it."""

    def emit(self, event: Event) -> None: ...
    def poll(self) -> list[AnyCommand]: ...
    def wait(self, timeout: float) -> list[AnyCommand]: ...
    def beat(self, doing: str = "") -> None: ...
    def busy(self, doing: str, at_most: float = 3600.0) -> AbstractContextManager[None]: ...


class JobStopped(Exception):
    """The job is asked to end; what was half done is dropped."""


class JobContext:
    """Reads commands between the pieces of work, and pauses there.

    Attributes:
        stop: the command to end, once it came.
        finish: whether the end is asked for with decay and save (`stop --finish`).
        checkpoint: called to save when asked; it may be called while paused.
        step: called for the number of steps completed.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.stop: Stop | None = None
        self.finish = False
        self.checkpoint: Callable[[], None] | None = None
        self.step: Callable[[], int] = lambda: 0
        self.paused_seconds = 0.0
        self._paused = False
        self._checkpoint_asked = False

    def serve(self, doing: str) -> None:
        """A heartbeat, and what was asked since the last one; a pause stands here until it is over.

        Raises:
            JobStopped: asked to end.
        """
        self.link.beat(doing)
        for command in self.link.poll():
            self._take(command)
        if self._paused and self.stop is None:
            self._stand_still()
        self._save_if_asked()
        if self.stop is not None:
            raise JobStopped

    def _take(self, command: AnyCommand) -> None:
        match command:
            case Pause():
                self._paused = True
            case Resume():
                self._paused = False
            case Checkpoint():
                self._checkpoint_asked = True
            case Stop():
                self._paused = False
                if command.finish:
                    self.finish = True
                else:
                    self.stop = command

    def _stand_still(self) -> None:
        began = time.monotonic()
        self.link.emit(RunPaused(step=self.step()))
        while self._paused:
            self._save_if_asked()
            for command in self.link.wait(0.5):
                self._take(command)
        self.paused_seconds += time.monotonic() - began
        if self.stop is None:
            self.link.emit(RunResumed(step=self.step()))

    def _save_if_asked(self) -> None:
        # Before training begins there is nothing to save yet: the asking waits for the first step.
        if self._checkpoint_asked and self.checkpoint is not None:
            self._checkpoint_asked = False
            self.checkpoint()
