"""Owns what somebody asks of a download job while it works: to pause, to go on, to end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from engine.events import AnyCommand, Event, Pause, Resume, RunPaused, RunResumed, Stop

_Result = TypeVar("_Result")


class Link(Protocol):
    """The worker's side of the hall, as far as a download needs it."""

    def emit(self, event: Event) -> None: ...
    def poll(self) -> list[AnyCommand]: ...
    def wait(self, timeout: float) -> list[AnyCommand]: ...
    def beat(self, doing: str = "") -> None: ...
    def busy(self, doing: str, at_most: float = 3600.0) -> AbstractContextManager[None]: ...


class Stopped(Exception):
    """The job is asked to end; what has come so far stays."""


class Helm:
    """Reads commands between the pieces of work, and pauses there.

    Attributes:
        link: where events go.
        on_pause: called before RunPaused is said, to let go of connections.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.on_pause: Callable[[], None] | None = None
        self._paused = False
        self._stop = False

    def serve(self, doing: str) -> None:
        """A sign of life, and what was asked since the last; a pause stands here until it is over.

        Raises:
            Stopped: asked to end.
        """
        self.link.beat(doing)
        for command in self.link.poll():
            self._take(command)
        if self._paused and not self._stop:
            if self.on_pause is not None:
                self.on_pause()
            self.link.emit(RunPaused())
            while self._paused:
                for command in self.link.wait(0.5):
                    self._take(command)
            if not self._stop:
                self.link.emit(RunResumed())
        if self._stop:
            raise Stopped

    def wait(self, seconds: float, doing: str) -> None:
        """Let time pass, serving."""
        done = threading.Event()
        timer = threading.Timer(seconds, done.set)
        timer.daemon = True
        timer.start()
        while not done.wait(0.1):
            self.serve(doing)

    def call(self, work: Callable[[], _Result], doing: str) -> _Result:
        """The result of `work`, done in a thread, while commands are served here.

        When the job is asked to end, the thread is left behind: it ends with the process.
        """
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["result"] = work()
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=run, name=doing, daemon=True)
        thread.start()
        while thread.is_alive():
            self.serve(doing)
            thread.join(0.1)
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    def _take(self, command: AnyCommand) -> None:
        match command:
            case Pause():
                self._paused = True
            case Resume():
                self._paused = False
            case Stop():
                self._paused, self._stop = False, True
