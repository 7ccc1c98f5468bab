"""Owns how screens hear of jobs: what runs on this root, its events live, and commands to it.

A thread looks which jobs have a runner; each that has gets a thread that reads its events and
hands them to the app in messages. How a screen uses this stands in `gladius_tui.app`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from textual.message import Message
from textual.message_pump import MessagePump

from engine.errors import GladiusError
from engine.events import (
    AnyCommand,
    AnyEvent,
    GuardTripped,
    Job,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
)
from engine.run.job import JOBS
from engine.workspace import Workspace

if TYPE_CHECKING:  # they bring sqlite3, which the first paint does not wait for
    from engine.run.control import Attachment

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 0.2
_BATCH_SECONDS = 0.1
_QUIET_SECONDS = 0.5
# The line at the top is read by people.
_TELL_SECONDS = 0.5
_PAGE = 1000


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running job in a line, as the header tells it."""

    job: Job
    run_id: str
    pid: int
    """The runner's."""
    status: str = "running"
    """running, paused, stalled, stopped (by SIGSTOP)."""
    preset: str = ""
    phase: int | None = None
    phases: int = 0
    phase_name: str = ""
    step: int = 0
    doing: str = ""
    """Label of work that is not steps, while it goes on."""
    progress: float | None = None
    """Share of the whole run, or of that work, 0 to 1."""
    eta: float | None = None

    def after(self, event: AnyEvent) -> JobInfo:
        """The job after `event`; pure."""
        replace = msgspec.structs.replace
        match event:
            case RunStarted():
                return replace(
                    self, status="running", preset=event.preset, step=event.resumed_from or 0
                )
            case PhaseStarted():
                return replace(
                    self, phase=event.phase, phases=event.phases, phase_name=event.name, doing=""
                )
            case StepDone():
                progress = self.progress if event.run_progress is None else event.run_progress
                return replace(
                    self, step=event.step, doing="", progress=progress, eta=event.run_eta
                )
            case Progress() if event.task.count(":") == 2:
                return self  # one file of an expert, whose own progress is told too
            case Progress():
                if event.finished:
                    return replace(self, doing="")
                share = event.done / event.total if event.total else None
                return replace(self, doing=event.label, progress=share, eta=event.eta)
            case RunPaused():
                return replace(self, status="paused")
            case RunResumed():
                return replace(self, status="running")
            case GuardTripped(guard="stall"):
                known = event.action in ("stopped", "stalled")
                return replace(self, status=event.action if known else "running")
            case RunEnded():
                return replace(self, status="ending")
        return self


class JobAttached(Message, bubble=False):
    """A job runs: all its events up to `seq` are in the history, later ones follow as JobEvents."""

    def __init__(self, job: Job, run_id: str, pid: int, seq: int) -> None:
        self.job: Job = job
        self.run_id = run_id
        self.pid = pid
        self.seq = seq
        super().__init__()


class JobEvents(Message, bubble=False):
    """Events of a job, in order; all that came since the last message was handled."""

    def __init__(self, line: _Line, job: Job, run_id: str) -> None:
        self._line = line
        self._events: tuple[AnyEvent, ...] | None = None
        self.job: Job = job
        self.run_id = run_id
        super().__init__()

    @property
    def events(self) -> tuple[AnyEvent, ...]:
        if self._events is None:
            self._events = self._line.take()
        return self._events


class JobDetached(Message, bubble=False):
    """The runner of a job is gone, and all its events were given."""

    def __init__(self, job: Job, run_id: str) -> None:
        self.job: Job = job
        self.run_id = run_id
        super().__init__()


class JobsChanged(Message, bubble=False):
    """What runs has changed, as `JobWatcher.jobs` tells it."""


class CommandAnswered(Message, bubble=False):
    """A command was carried out (`event` names the step), or could not be (`error` says why)."""

    def __init__(
        self, job: Job, command: AnyCommand, event: AnyEvent | None, error: str = ""
    ) -> None:
        self.job: Job = job
        self.command = command
        self.event = event
        self.error = error
        super().__init__()


class _Line:
    """Events on their way to one subscriber: one message at a time, however slow it is."""

    def __init__(self, target: MessagePump, job: Job, run_id: str) -> None:
        self._target, self._run_id = target, run_id
        self._job: Job = job
        self._lock = threading.RLock()
        self._waiting: deque[AnyEvent] = deque()
        self._told = False
        self._told_up_to = 0
        self._last_word: Message | None = None
        self.held_back = False
        """What comes waits for the history that is to be told first."""

    def release(self, past: Sequence[AnyEvent]) -> None:
        """Tell the history, then what came since.

        The history may be ahead of the live events: what it told already is not told again.
        """
        with self._lock:
            self._told_up_to = last = past[-1].seq if past else 0
            later = [event for event in self._waiting if event.seq > last]
            self._waiting = deque([*past, *later])
            self.held_back = False
            self.put(())
            if self._last_word is not None:
                self._target.post_message(self._last_word)

    def end(self, message: Message) -> None:
        """Send `message` once all events are told; a job can end before its history is read."""
        with self._lock:
            if self.held_back:
                self._last_word = message
                return
        self._target.post_message(message)

    def put(self, events: Sequence[AnyEvent]) -> None:
        with self._lock:
            self._waiting.extend(event for event in events if event.seq > self._told_up_to)
            if self._told or self.held_back or not self._waiting:
                return
            self._told = True
        self._target.post_message(JobEvents(self, self._job, self._run_id))

    def take(self) -> tuple[AnyEvent, ...]:
        with self._lock:
            events = tuple(self._waiting)
            self._waiting.clear()
            self._told = False
        return events


def _replay(pump: _Pump, line: _Line) -> None:
    past: Sequence[AnyEvent] = ()
    try:
        past = pump.past()
    finally:  # without its history a job is still told live, and that it ended
        line.release(past)


class _Subscription:
    def __init__(self, target: MessagePump, jobs: Sequence[Job], replay: bool) -> None:
        self.target, self.jobs, self.replay = target, jobs, replay
        self.lines: dict[Job, _Line] = {}


class JobWatcher:
    """Watches the jobs of one root. `start` and `stop` belong to the app; all methods return at
    once and may be called from any thread."""

    def __init__(self, ws: Workspace, app: MessagePump) -> None:
        self._ws = ws
        self._app = app
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._look_now = threading.Event()
        self._subscriptions: list[_Subscription] = []
        self._pumps: dict[Job, _Pump] = {}
        self._held: set[Job] = set()
        self.jobs: dict[Job, JobInfo] = {}
        """The jobs that run, as last heard; replaced, never changed in place."""
        self.looked = threading.Event()
        """Set once it is known which jobs run."""

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._look, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Let go of all jobs; they go on."""
        self._over.set()
        self._look_now.set()

    def look(self) -> None:
        """Look now which jobs run, not at the next tick: one was just started."""
        self._look_now.set()

    def subscribe(self, target: MessagePump, *jobs: Job, replay: bool = False) -> None:
        """Send `target` JobAttached, JobEvents and JobDetached of these jobs (none: of all).

        For a job that runs already JobAttached comes at once. With `replay` its `seq` is 0 and
        the run's history comes first, as JobEvents: for jobs with few events, not for training.
        """
        subscription = _Subscription(target, jobs or tuple(JOBS), replay)
        with self._lock:
            self._subscriptions.append(subscription)
            self._welcome(list(self._pumps.values()), [subscription])

    def unsubscribe(self, target: MessagePump) -> None:
        """Send `target` nothing more."""
        with self._lock:
            self._subscriptions = [s for s in self._subscriptions if s.target is not target]

    def ask(self, target: MessagePump, job: Job, command: AnyCommand) -> None:
        """Send a command to a running job; `target` gets a CommandAnswered when it is done."""

        def send() -> None:
            from engine.run.control import attach

            try:
                with attach(self._ws, job) as attachment:
                    answer = CommandAnswered(job, command, attachment.send(command))
            except (GladiusError, OSError) as error:
                answer = CommandAnswered(job, command, None, str(error))
            target.post_message(answer)

        threading.Thread(target=send, name=f"ask-{job}", daemon=True).start()

    # Inside

    def _look(self) -> None:
        from engine.run.lock import lock_owner

        while not self._over.is_set():
            for job in JOBS:
                if job not in self._held and lock_owner(self._ws, job) is not None:
                    self._held.add(job)
                    threading.Thread(
                        target=self._hold, args=(job,), name=f"watch-{job}", daemon=True
                    ).start()
            self.looked.set()
            self._look_now.wait(_LOOK_SECONDS)
            self._look_now.clear()

    def _hold(self, job: Job) -> None:
        """Attach to a job, and hand its events on until it ends."""
        from engine.run.control import attach

        try:
            pump = _Pump(self, self._ws, job, attach(self._ws, job))
        except (GladiusError, OSError):
            # It begins or ends just now, or can't be reached; it is tried again while it is there.
            self._over.wait(_AGAIN_SECONDS)
            self._held.discard(job)
            self.look()
            return
        with self._lock:
            self._pumps[job] = pump
            self._tell(pump.info, job)
            self._welcome([pump], self._subscriptions)
        try:
            pump.run()
        finally:
            self._held.discard(job)
            self.look()

    def _welcome(self, pumps: Sequence[_Pump], subscriptions: Sequence[_Subscription]) -> None:
        """Under the lock: nothing is handed on between JobAttached and the first event."""
        for pump in pumps:
            for subscription in subscriptions:
                if pump.job not in subscription.jobs:
                    continue
                line = _Line(subscription.target, pump.job, pump.run_id)
                seq = 0 if subscription.replay else pump.given
                subscription.target.post_message(JobAttached(pump.job, pump.run_id, pump.pid, seq))
                subscription.lines[pump.job] = line
                if subscription.replay:
                    line.held_back = True
                    threading.Thread(target=_replay, args=(pump, line), daemon=True).start()

    def _tell(self, info: JobInfo | None, job: Job) -> None:
        with self._lock:
            if self.jobs.get(job) == info:
                return
            jobs: dict[Job, JobInfo] = {
                name: known for name, known in self.jobs.items() if name != job
            }
            self.jobs = jobs if info is None else {**jobs, job: info}
        self._app.post_message(JobsChanged())

    def _deliver(self, job: Job, events: Sequence[AnyEvent]) -> None:
        for subscription in self._subscriptions:
            if line := subscription.lines.get(job):
                line.put(events)

    def _detach(self, pump: _Pump) -> None:
        with self._lock:
            del self._pumps[pump.job]
            for subscription in self._subscriptions:
                if (line := subscription.lines.pop(pump.job, None)) is not None:
                    line.end(JobDetached(pump.job, pump.run_id))
            self._tell(None, pump.job)


class _Pump:
    """Reads one job's events until its runner is gone."""

    def __init__(
        self, watcher: JobWatcher, ws: Workspace, job: Job, attachment: Attachment
    ) -> None:
        self._watcher, self._ws, self._attachment = watcher, ws, attachment
        self.job: Job = job
        self.run_id = attachment.run_id
        self.pid = attachment.pid
        self.given = attachment.seq
        """Number of the last event that was handed on."""
        self.info = self._known()
        """The job as it was told last."""

    def run(self) -> None:
        info = self.info
        batch: list[AnyEvent] = []
        handed = told = 0.0
        try:
            while not self._watcher._over.is_set():
                wait = _BATCH_SECONDS if batch else _QUIET_SECONDS
                event = next(self._attachment.events(wait), None)
                if event is not None:
                    batch.append(event)
                    info = info.after(event)
                elif self._attachment.ended:
                    break
                now = time.monotonic()
                if batch and now - handed > _BATCH_SECONDS:
                    self._hand_on(batch)
                    batch, handed = [], now
                    if now - told > _TELL_SECONDS or info.status != self.info.status:
                        self.info, told = info, now
                        self._watcher._tell(info, self.job)
            self._hand_on(batch)
        finally:
            self._attachment.close()
            self._watcher._detach(self)

    def _hand_on(self, batch: list[AnyEvent]) -> None:
        if not batch:
            return
        with self._watcher._lock:
            self.given = batch[-1].seq
            self._watcher._deliver(self.job, batch)

    def _known(self) -> JobInfo:
        """The job as the history tells it, up to where the live events begin."""
        from engine.run.history import History

        history = History(self._ws.history_file)
        try:
            kinds = (RunStarted, PhaseStarted, Progress, StepDone, RunPaused, RunResumed)
            found = [history.last(self.run_id, kind.__name__) for kind in kinds]
        finally:
            history.close()
        info = JobInfo(job=self.job, run_id=self.run_id, pid=self.pid)
        known = [event for event in found if event is not None and event.seq <= self.given]
        for event in sorted(known, key=lambda event: event.seq):
            info = info.after(event)
        return info

    def past(self) -> list[AnyEvent]:
        """The run's events from its beginning to those that were handed on by now, or later."""
        from engine.run.history import History

        history = History(self._ws.history_file)
        events: list[AnyEvent] = []
        try:
            while page := history.events(self.run_id, events[-1].seq if events else 0, _PAGE):
                events += page
        finally:
            history.close()
        return events
