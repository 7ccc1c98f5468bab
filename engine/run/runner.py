"""Owns a job from its start to its end: spawns its worker, restarts it when it dies, watches over
it, and answers signals and viewers.

What the job does is the worker's; what becomes of its events is `record`'s.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from engine import hardware
from engine.errors import ExitCode, GladiusError
from engine.events import (
    AnyCommand,
    AnyEvent,
    Checkpoint,
    CheckpointSaved,
    GuardTripped,
    Heartbeat,
    Job,
    JobRequest,
    LogLine,
    Pause,
    Progress,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    Stop,
    decode_event,
)
from engine.run.history import History
from engine.run.job import JOBS
from engine.run.record import EventHandler, Recorder
from engine.run.server import ControlServer, Viewer
from engine.run.spawn import WorkerProcess
from engine.run.state import hold_lock, read_state
from engine.run.worker import HUNG, hang_seconds
from engine.workspace import Workspace

MAX_RESTARTS = 3
STALL_VARIABLE = "GLADIUS_STALL_SECONDS"
_STALL_SECONDS = 30.0
_HARDWARE_SECONDS = 2.0
_TICK_SECONDS = 0.1
# A worker that has said RunEnded has nothing left to lose.
_EXIT_SECONDS = 15.0


def run_job(
    ws: Workspace,
    *,
    job: Job,
    config: bytes,
    run_id: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    on_event: EventHandler | None = None,
    target: str | None = None,
) -> int:
    """Run a job in the foreground, in a worker process; returns the exit code for the command.

    `config` is the job's config as JSON. `on_event` is called, in a thread of its own, with every
    event once it is committed; when it raises, it is not called again. `target`
    ("module:function") replaces the job's own main. SIGINT and SIGTERM end the job in order (130,
    143), a second one ends it now; SIGHUP is ignored.

    Raises LockedError when this job already runs here, GladiusError when the root can't be used.
    """
    ws.create()
    socket_path = _socket_path(ws, job)
    with hold_lock(ws, job, str(socket_path or "")):
        history = History(ws.history_file)
        if run_id is None and resume:
            run_id = _run_to_resume(ws, history, job)
        request = JobRequest(
            job=job,
            root=str(ws.root),
            run_id=run_id or f"{job}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            attempt=0,
            resume=resume,
            fresh=fresh,
            config=config,
        )
        runner = _Runner(ws, history, request, target or JOBS[job].entry_point, on_event)
        with runner.signals():
            return runner.run(socket_path)


def _socket_path(ws: Workspace, job: Job) -> Path | None:
    try:
        return ws.runtime_dir / f"{job}.sock"
    except GladiusError:
        return None


def _run_to_resume(ws: Workspace, history: History, job: Job) -> str | None:
    record = history.last_run(job)
    if record is not None:
        return record.run_id
    return read_state(ws).run_id if job == "train" else None  # the history may have been lost


class _Runner:
    """Does everything in the thread that calls `run`. All other threads (the worker's queue
    reader, the control server, the hardware reader) and signal handlers only put calls into its
    inbox.
    """

    def __init__(
        self,
        ws: Workspace,
        history: History,
        request: JobRequest,
        target: str,
        on_event: EventHandler | None,
    ) -> None:
        self._ws = ws
        self._job: Job = request.job
        self._request = request
        self._target = target
        self._history = history
        self._record = Recorder(ws, history, request, on_event)
        # A SimpleQueue's put is safe in signal handlers.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # The run
        self._begun = False
        self._paused: RunPaused | None = None
        self._asked: list[tuple[Viewer, AnyCommand]] = []
        self._stopping = False
        self._signal = 0
        self._killed = False
        self._restarts = 0
        self._early_deaths = 0
        # The attempt
        self._worker: WorkerProcess | None = None
        self._progressed = False
        self._last_error = ""
        self._ended: RunEnded | None = None
        self._ended_at = 0.0
        # Signs of life, by the monotonic clock
        self._stall_seconds = float(os.environ.get(STALL_VARIABLE) or _STALL_SECONDS)
        self._heard_at = 0.0
        self._checked_at = 0.0
        self._stall = ""

    # The whole run

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into calls, and ignore SIGHUP, for the time of the block."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(number: int, _frame: object) -> None:
            self._inbox.put(lambda: self._on_signal(number))

        former = {n: signal.signal(n, remember) for n in (signal.SIGINT, signal.SIGTERM)}
        former[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def run(self, socket_path: Path | None) -> int:
        """Run the job to its end; returns the exit code."""
        self._start_server(socket_path)
        over = threading.Event()
        threading.Thread(target=self._read_hardware, args=(over,), daemon=True).start()
        try:
            code = None
            while code is None:
                self._begin_attempt()
                self._attend()
                code = self._judge()
            return code
        finally:
            over.set()
            if self._worker is not None:
                self._worker.kill()
                self._worker.close()
            self._record.close()

    def _start_server(self, path: Path | None) -> None:
        try:
            if path is None:
                raise OSError("no folder of one's own for its socket; set XDG_RUNTIME_DIR")
            self._record.server = ControlServer(
                path,
                run_id=self._request.run_id,
                job=self._job,
                seq=self._record.seq,
                on_ask=lambda viewer, command: self._inbox.put(
                    lambda: self._on_ask(viewer, command)
                ),
            )
        except OSError as error:
            self._record.say("warning", f"nobody can attach to this run: {error}")

    def _read_hardware(self, over: threading.Event) -> None:
        def add(event: AnyEvent) -> None:
            self._inbox.put(lambda: self._record.add(event))

        while not over.wait(_HARDWARE_SECONDS):
            worker = self._worker
            try:
                add(hardware.read(worker.pid if worker else None, self._ws.root))
            except Exception as error:  # a driver's whim ends the readings, never the job
                add(LogLine(level="warning", text=f"no more hardware readings: {error!r}"))
                return

    # One attempt

    def _begin_attempt(self) -> None:
        run_id = self._request.run_id
        self._record.attempt = attempt = self._history.begin_attempt(run_id)
        # Until a worker has begun the run the user's wish holds; from then on it is to go on.
        request = msgspec.structs.replace(
            self._request,
            attempt=attempt,
            resume=self._request.resume or self._begun,
            fresh=self._request.fresh and not self._begun,
            training_seconds=self._history.training_seconds(run_id),
        )
        self._progressed, self._last_error, self._ended, self._stall = False, "", None, ""
        self._heard_at = self._checked_at = time.monotonic()

        def on_message(data: bytes) -> None:
            self._inbox.put(lambda: self._on_message(attempt, data))

        self._worker = WorkerProcess(request, self._target, self._ws.log_file(), on_message)
        # A paused run stays paused over a restart, and what was asked is asked again.
        if self._paused is not None:
            self._worker.send(Pause())
        for _, command in self._asked:
            self._worker.send(command)

    def _attend(self) -> None:
        """Handle everything until the worker has ended and all that it said is recorded."""
        worker = self._worker
        assert worker is not None
        while True:
            with contextlib.suppress(queue.Empty):
                self._inbox.get(timeout=_TICK_SECONDS)()
                while not self._record.due:
                    self._inbox.get_nowait()()
            if self._record.due:
                self._flush()
            self._record.write_state()
            if worker.exit_code is None:
                self._check_life(worker)
            elif worker.drained() and self._inbox.empty():
                self._flush()
                return

    def _on_message(self, attempt: int, data: bytes) -> None:
        if attempt != self._record.attempt:  # from a reader that was abandoned
            return
        self._heard_at = time.monotonic()
        try:
            event = decode_event(data)
        except msgspec.MsgspecError as error:
            self._record.say("warning", f"an event of the worker was not understood: {error}")
            return
        match event:
            case Heartbeat():
                return
            case RunStarted():
                self._begun = True
                self._record.step = event.resumed_from or 0
            case StepDone():
                self._progressed = True
                self._record.step = event.step
            case Progress():
                self._progressed |= self._job != "train"
            case LogLine(level="error"):
                self._last_error = event.text
            case RunEnded():
                self._ended, self._ended_at = event, time.monotonic()
        self._record.add(event)

    def _flush(self) -> None:
        """Commit and tell; then answer those whose commands were carried out."""
        for event in self._record.flush():
            match event:
                case RunPaused():
                    self._paused = event
                case RunResumed():
                    self._paused = None
            waiting = []
            for viewer, command in self._asked:
                if _acknowledges(event, command):
                    self._answer(viewer, event)
                else:
                    waiting.append((viewer, command))
            self._asked = waiting

    def _check_life(self, worker: WorkerProcess) -> None:
        now = time.monotonic()
        stopped = worker.is_stopped()
        # Time in which the worker, or this process, was not let run does not count as silence.
        if stopped or now - self._checked_at > 5.0:
            self._heard_at = now
        self._checked_at = now
        silent = now - self._heard_at
        stall = "stopped" if stopped else "stalled" if silent > self._stall_seconds else ""
        if stall != self._stall:
            self._stall = stall
            self._record.add(GuardTripped(guard="stall", action=stall or "going on"))
        if silent > hang_seconds() + self._stall_seconds:
            # Its own watchdog could not act, as when native code never lets go of the
            # interpreter. SIGABRT makes faulthandler write all stacks into the log.
            self._record.say("error", f"the worker is ended: no sign of life for {silent:.0f} s")
            self._heard_at = now
            worker.signal(signal.SIGABRT)
        if self._ended is not None and now - self._ended_at > _EXIT_SECONDS:
            worker.kill()

    def _judge(self) -> int | None:
        """What the worker's end means: the run's exit code, or None to begin another attempt."""
        assert self._worker is not None
        code = self._worker.exit_code
        assert code is not None
        self._worker.close()
        self._worker = None
        if self._ended is None and code == 0:
            self._end("stopped" if self._stopping else "completed")
        elif self._ended is None and self._stopping:
            how = "ended at once" if self._killed else f"the worker died ({self._cause(code)})"
            status = "stopped" if self._signal else "failed"
            self._end(status, f"{how}; go on from the last checkpoint with: {self._remedy()}")
        elif self._ended is None and not self._restart(code):
            hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
            self._end(
                "failed",
                f"the worker died {self._restarts + 1} times, last at step {self._record.step}: "
                f"{self._cause(code)}{hint}; see {self._ws.log_file()}, "
                f"then go on with: {self._remedy()}",
            )
        if self._ended is None:
            return None
        if self._ended.status == "failed":
            return self._ended.exit_code or ExitCode.FAILED
        if self._ended.status == "stopped" and self._signal:
            return 128 + self._signal
        return ExitCode.DONE

    def _restart(self, code: int) -> bool:
        """Announce another attempt after a death; False when the tries are spent."""
        self._early_deaths = 0 if self._progressed else self._early_deaths + 1
        if self._restarts == MAX_RESTARTS or self._early_deaths == 2:
            return False
        self._restarts += 1
        action = (
            f"worker died at step {self._record.step} ({self._cause(code)}), "
            f"restarting {self._restarts} of {MAX_RESTARTS}"
        )
        self._record.add(GuardTripped(guard="worker", action=action))
        self._flush()
        return True

    def _cause(self, code: int) -> str:
        if code < 0:
            return f"signal {-code}"
        if code == HUNG:
            return "it hung"
        return self._last_error or f"exit code {code}"

    def _remedy(self) -> str:
        return f"gladius_train {JOBS[self._job].resume_command}"

    def _end(self, status: Literal["completed", "stopped", "failed"], reason: str = "") -> None:
        exit_code = ExitCode.FAILED if status == "failed" else ExitCode.DONE
        self._ended = RunEnded(status=status, exit_code=exit_code, reason=reason)
        self._record.add(self._ended)
        self._flush()

    # Signals and commands

    def _on_signal(self, number: int) -> None:
        assert self._worker is not None
        second = bool(self._signal)
        self._signal, self._stopping = number, True
        if second:
            self._killed = True
            self._worker.kill()
        else:
            self._worker.signal(signal.SIGCONT)
            self._worker.send(Stop(signal=number))

    def _on_ask(self, viewer: Viewer, command: AnyCommand) -> None:
        assert self._worker is not None
        changing = any(isinstance(other, Pause | Resume) for _, other in self._asked)
        if isinstance(command, Pause) and self._paused is not None and not changing:
            self._answer(viewer, self._paused)
        elif isinstance(command, Resume) and self._paused is None and not changing:
            step, seq = self._record.step, self._record.seq
            self._answer(viewer, RunResumed(seq=seq, time=time.time(), step=step))
        else:
            # A worker that dies while it stops is not restarted; one that finishes the run is.
            self._stopping |= isinstance(command, Stop) and not command.finish
            self._asked.append((viewer, command))
            self._worker.send(command)

    def _answer(self, viewer: Viewer, event: AnyEvent) -> None:
        if self._record.server is not None:
            self._record.server.answer(viewer, event)


def _acknowledges(event: AnyEvent, command: AnyCommand) -> bool:
    """Whether the event answers the command; the end of the run answers them all, and a full
    disk a checkpoint that was asked for."""
    match command, event:
        case _, RunEnded():
            return True
        case Pause(), RunPaused():
            return True
        case Resume(), RunResumed():
            return True
        case Checkpoint(), CheckpointSaved(reason="asked") | GuardTripped(guard="disk"):
            return True
    return False
