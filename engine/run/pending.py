"""Commands from viewers that the worker has not acknowledged yet."""

from __future__ import annotations

import time

from engine.events import (
    AnyCommand,
    AnyEvent,
    Checkpoint,
    CheckpointSaved,
    GuardTripped,
    Pause,
    Question,
    QuestionAnswered,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    Stop,
)
from engine.run.record import Recorder
from engine.run.server import Viewer
from engine.run.spawn import WorkerProcess


class PendingCommands:
    """Passes commands to the worker and answers their viewers when an event acknowledges them.

    Attributes:
        stopping: whether stop was requested: a worker that dies then is not restarted.
    """

    def __init__(self, record: Recorder) -> None:
        self.stopping = False
        self._record = record
        self._paused: RunPaused | None = None
        self._pending: list[tuple[Viewer, AnyCommand]] = []

    def request(self, viewer: Viewer, command: AnyCommand, worker: WorkerProcess) -> None:
        """Pass a command on; a pause or resume that changes nothing is answered at once."""
        changing = any(isinstance(other, Pause | Resume) for _, other in self._pending)
        if isinstance(command, Pause) and self._paused is not None and not changing:
            self._answer(viewer, self._paused)
        elif isinstance(command, Resume) and self._paused is None and not changing:
            step, seq = self._record.step, self._record.seq
            self._answer(viewer, RunResumed(seq=seq, time=time.time(), step=step))
        else:
            # With `stop --finish` the run still has work to do, so a dead worker is restarted.
            self.stopping |= isinstance(command, Stop) and not command.finish
            self._pending.append((viewer, command))
            worker.send(command)

    def apply(self, event: AnyEvent) -> None:
        """Take note of a recorded event, and answer the commands that it acknowledges."""
        match event:
            case RunPaused():
                self._paused = event
            case RunResumed():
                self._paused = None
        pending = []
        for viewer, command in self._pending:
            if _acknowledges(event, command):
                self._answer(viewer, event)
            else:
                pending.append((viewer, command))
        self._pending = pending

    def resend(self, worker: WorkerProcess) -> None:
        """Send a restarted worker the pause, if the run is paused, and the pending commands."""
        if self._paused is not None:
            worker.send(Pause())
        for _, command in self._pending:
            worker.send(command)

    def _answer(self, viewer: Viewer, event: AnyEvent) -> None:
        if self._record.server is not None:
            self._record.server.answer(viewer, event)


def _acknowledges(event: AnyEvent, command: AnyCommand) -> bool:
    """Whether the event answers the command. The end of the run answers every command, and a full
    disk answers a requested checkpoint."""
    match command, event:
        case _, RunEnded():
            return True
        case Pause(), RunPaused():
            return True
        case Resume(), RunResumed():
            return True
        case Checkpoint(), CheckpointSaved(reason="asked") | GuardTripped(guard="disk"):
            return True
        case Question(), QuestionAnswered():
            return command.id == event.id
    return False
