"""Running a job: spawns its worker, restarts it when it dies, and answers signals and viewers."""

from __future__ import annotations

import contextlib
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
    EarlierEvents,
    GuardTripped,
    Heartbeat,
    Job,
    JobRequest,
    LogLine,
    Progress,
    RunEnded,
    RunStarted,
    StepDone,
    Stop,
    StopRequested,
    decode_event,
)
from engine.run.extras import RunExtras
from engine.run.history import History
from engine.run.job import JOBS, MAX_RESTARTS
from engine.run.leftovers import forget_semaphores, record_semaphores, remove_leftovers
from engine.run.liveness import Liveness
from engine.run.lock import Owner, hold_lock, lock_path, restore_lock
from engine.run.pending import PendingCommands
from engine.run.record import EventHandler, Recorder
from engine.run.server import ControlServer, Viewer
from engine.run.spawn import WorkerProcess
from engine.run.state import read_state
from engine.run.worker import HUNG
from engine.workspace import Workspace, remove_runtime_dir, runtime_dir

_MAX_EARLY_DEATHS = 2
"""Deaths in a row before any progress, after which a restart is pointless."""
_HARDWARE_SECONDS = 2.0
_TICK_SECONDS = 0.1
_LOCK_SECONDS = 1.0
"""Seconds between two looks at the lock's file."""
_EXIT_SECONDS = 15.0
"""A worker that has sent RunEnded and does not exit in this time is killed."""


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
    extras: RunExtras | None = None,
) -> int:
    """Run a job in the foreground, in a worker process; returns the exit code for the command.

    `config` is the job's config as JSON. `on_event` is called in its own thread with every event
    after it was committed; when it raises, it is not called again. `target` ("module:function")
    replaces the job's entry point. `extras`: the run's name and note, and where its metrics go as
    well. SIGINT and SIGTERM stop the job in order (exit codes 130, 143),
    a second one kills it; SIGHUP is ignored.

    Raises LockedError when this job already runs here, GladiusError when the root can't be used.
    """
    ws.create()
    socket_path = _socket_path(ws, job)
    with _runtime_folder(ws), hold_lock(ws, job, str(socket_path or "")) as owner:
        remove_leftovers(ws)
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
        record = Recorder(ws, history, request, on_event)
        record.follow(extras)
        runner = _Runner(ws, history, record, request, target or JOBS[job].entry_point, owner)
        with runner.signals():
            return runner.run(socket_path)


@contextlib.contextmanager
def _runtime_folder(ws: Workspace) -> Iterator[None]:
    """Delete the folder of the socket afterwards."""
    try:
        yield
    finally:
        remove_runtime_dir(ws.root)


def _socket_path(ws: Workspace, job: Job) -> Path | None:
    try:
        return runtime_dir(ws.root) / f"{job}.sock"
    except GladiusError:
        return None


def _run_to_resume(ws: Workspace, history: History, job: Job) -> str | None:
    record = history.last_run(job)
    if record is not None:
        return record.run_id
    return read_state(ws).run_id if job == "train" else None  # the history may have been lost


class _Runner:
    """Supervises the attempts of one run, in the thread that calls `run`.

    All other threads (the reader of the worker's queue, the control server, the hardware reader)
    and signal handlers only put calls into its inbox.
    """

    def __init__(
        self,
        ws: Workspace,
        history: History,
        record: Recorder,
        request: JobRequest,
        target: str,
        owner: Owner,
    ) -> None:
        self._ws = ws
        self._owner = owner
        self._lock_checked = time.monotonic()
        self._history = history
        self._record = record
        self._request = request
        self._target = target
        self._commands = PendingCommands(record)
        self._liveness = Liveness(record)
        # A SimpleQueue's put is safe in signal handlers.
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # Of the run
        self._begun = False
        self._signal = 0
        self._killed = False
        self._restarts = 0
        self._early_deaths = 0
        # Of the attempt
        self._worker: WorkerProcess | None = None
        self._progressed = False
        self._last_error = ""
        self._ended: RunEnded | None = None
        self._ended_at = 0.0

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into calls and ignore SIGHUP while the block runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def enqueue(number: int, _frame: object) -> None:
            self._inbox.put(lambda: self._on_signal(number))

        old_handlers = {n: signal.signal(n, enqueue) for n in (signal.SIGINT, signal.SIGTERM)}
        old_handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in old_handlers.items():
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
                self._supervise()
                code = self._conclude()
            return code
        finally:
            over.set()
            if self._worker is not None:
                self._worker.kill()
                self._worker.close()
            forget_semaphores(self._ws)
            self._record.close()

    def _start_server(self, path: Path | None) -> None:
        def on_command(viewer: Viewer, command: AnyCommand) -> None:
            self._inbox.put(lambda: self._on_command(viewer, command))

        try:
            if path is None:
                raise OSError("there is no private folder for its socket; set XDG_RUNTIME_DIR")
            runtime_dir(self._ws.root)  # another job that has ended may just have deleted it
            self._record.server = ControlServer(
                path,
                run_id=self._request.run_id,
                job=self._request.job,
                seq=self._record.seq,
                on_command=on_command,
            )
        except (OSError, GladiusError) as error:
            self._record.log("warning", f"no viewer can attach to this run: {error}")

    def _read_hardware(self, over: threading.Event) -> None:
        def add(event: AnyEvent) -> None:
            self._inbox.put(lambda: self._record.add(event))

        while not over.wait(_HARDWARE_SECONDS):
            worker = self._worker
            try:
                add(hardware.read(worker.pid if worker else None, self._ws.root))
            except Exception as error:  # a driver error ends the readings, never the job
                add(LogLine(level="warning", text=f"no more hardware readings: {error!r}"))
                return

    def _begin_attempt(self) -> None:
        run_id = self._request.run_id
        self._record.attempt = attempt = self._history.begin_attempt(run_id)
        # Once a worker has begun the run, a restarted one resumes it, whatever was requested.
        request = msgspec.structs.replace(
            self._request,
            attempt=attempt,
            resume=self._request.resume or self._begun,
            fresh=self._request.fresh and not self._begun,
            training_seconds=self._history.training_seconds(run_id),
        )
        self._progressed, self._last_error, self._ended = False, "", None
        self._liveness.begin_attempt()

        def on_message(data: bytes) -> None:
            self._inbox.put(lambda: self._on_message(attempt, data))

        self._worker = WorkerProcess(request, self._target, self._ws.log_file(), on_message)
        record_semaphores(self._ws, self._worker.semaphores)
        self._commands.resend(self._worker)

    def _supervise(self) -> None:
        """Handle the inbox until the worker has ended and all its events are recorded."""
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
            self._check_lock()
            if worker.exit_code is None:
                self._liveness.check(worker)
                if self._ended is not None and time.monotonic() - self._ended_at > _EXIT_SECONDS:
                    worker.kill()
            elif worker.drained() and self._inbox.empty():
                self._flush()
                return

    def _check_lock(self) -> None:
        """Write the lock's file again, with a warning, if it was deleted."""
        if time.monotonic() - self._lock_checked < _LOCK_SECONDS:
            return
        self._lock_checked = time.monotonic()
        if restore_lock(self._ws, self._owner):
            path = lock_path(self._ws, self._owner.job)
            self._record.log("warning", f"{path} was deleted or damaged: it was written again")

    def _on_message(self, attempt: int, data: bytes) -> None:
        if attempt != self._record.attempt:  # from a reader that was abandoned
            return
        self._liveness.message_received()
        try:
            event = decode_event(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            self._record.log("warning", f"an event of the worker can't be decoded: {error}")
            return
        match event:
            case Heartbeat():
                if event.commit and self._worker is not None:
                    self._flush()
                    self._worker.committed(event.commit)
                return
            case EarlierEvents():
                self._record.fill_in(event.lines)
                return
            case RunStarted():
                self._begun = True
                self._record.step = event.resumed_from or 0
            case StepDone():
                self._progressed = True
                self._record.step = event.step
            case Progress():
                self._progressed |= self._request.job != "train"
            case LogLine(level="error"):
                self._last_error = event.text
            case RunEnded():
                self._ended, self._ended_at = event, time.monotonic()
        self._record.add(event)

    def _flush(self) -> None:
        for event in self._record.flush():
            self._commands.apply(event)

    def _conclude(self) -> int | None:
        """The run's exit code after the worker's end, or None when it is to be restarted."""
        assert self._worker is not None
        code = self._worker.exit_code
        assert code is not None
        self._worker.close()
        self._worker = None
        remedy = f"gladius_train {JOBS[self._request.job].resume_command}"
        cause = _cause(code, self._last_error)
        if self._ended is None and code == 0:
            self._end("stopped" if self._commands.stopping else "completed")
        elif self._ended is None and self._commands.stopping:
            how = "killed" if self._killed else f"the worker died ({cause})"
            status = "stopped" if self._signal else "failed"
            self._end(status, f"{how}; resume from the last checkpoint with: {remedy}")
        elif self._ended is None and not self._restart(cause):
            hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
            self._end(
                "failed",
                f"the worker died {self._restarts + 1} times, last at step {self._record.step}: "
                f"{cause}{hint}; see {self._ws.log_file()}, then resume with: {remedy}",
            )
        if self._ended is None:
            return None
        if self._ended.status == "failed":
            return self._ended.exit_code or ExitCode.FAILED
        if self._ended.status == "stopped" and self._signal:
            return 128 + self._signal
        return ExitCode.DONE

    def _restart(self, cause: str) -> bool:
        """Announce another attempt after a death; False when no attempts are left."""
        self._early_deaths = 0 if self._progressed else self._early_deaths + 1
        if self._restarts == MAX_RESTARTS or self._early_deaths == _MAX_EARLY_DEATHS:
            return False
        self._restarts += 1
        action = (
            f"worker died at step {self._record.step} ({cause}), "
            f"restarting {self._restarts} of {MAX_RESTARTS}"
        )
        self._record.add(GuardTripped(guard="worker", action=action, value=float(self._restarts)))
        self._flush()
        return True

    def _end(self, status: Literal["completed", "stopped", "failed"], reason: str = "") -> None:
        exit_code = ExitCode.FAILED if status == "failed" else ExitCode.DONE
        self._ended = RunEnded(status=status, exit_code=exit_code, reason=reason)
        self._record.add(self._ended)
        self._flush()

    def _on_signal(self, number: int) -> None:
        assert self._worker is not None
        second = bool(self._signal)
        self._signal, self._commands.stopping = number, True
        if second:
            self._killed = True
            self._worker.kill()
        else:
            self._record.add(StopRequested())
            self._worker.signal(signal.SIGCONT)
            self._worker.send(Stop(signal=number))

    def _on_command(self, viewer: Viewer, command: AnyCommand) -> None:
        assert self._worker is not None
        if isinstance(command, Stop):
            self._record.add(StopRequested(finish=command.finish))
        self._commands.request(viewer, command, self._worker)


def _cause(code: int, last_error: str) -> str:
    """Description of a worker's exit code."""
    if code < 0:
        return f"killed by signal {-code}"
    if code == HUNG:
        return "it hung"
    return last_error or f"exit code {code}"
