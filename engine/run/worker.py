"""The worker process of a job: the link to its runner, signals, output streams and watchdog.

It calls the job's `main(ctx, request) -> int`. Nothing here imports torch.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import GladiusError
from engine.events import (
    AnyCommand,
    Event,
    Heartbeat,
    JobRequest,
    LogLine,
    RunEnded,
    decode_command,
    encode,
)
from engine.foreign_text import LINES, shown
from engine.run.job import JOBS, JobContext

HUNG = 70
"""Exit code of a worker that its own watchdog ended; its stacks are in the log."""
CRASHED = 71
"""Exit code of a worker that an unexpected exception ended; its traceback is in the log."""
ORPHANED = 72
"""Exit code of a worker whose runner has exited."""

COMMITTED = b"committed "
"""Begins the runner's answer on the pipe to a Heartbeat with `commit`; its number follows."""
COMMIT_SECONDS = 10.0

HANG_VARIABLE = "GLADIUS_HANG_SECONDS"
_HANG_SECONDS = 900.0
_HEARTBEAT_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def hang_seconds() -> float:
    """Seconds without a heartbeat after which a worker counts as hung."""
    return float(os.environ.get(HANG_VARIABLE) or _HANG_SECONDS)


class WorkerLink:
    """The connection of a job to its runner: events and heartbeats out, commands in.

    `emit` and `heartbeat` may be called from any thread, `poll` and `wait` from one.
    """

    def __init__(self, outbox: Any, commands: Connection, hang_seconds: float) -> None:
        """`outbox` is the multiprocessing queue to the runner, `commands` the reading end of the
        pipe from it. Without a heartbeat for `hang_seconds` the process exits with HUNG."""
        self._outbox = outbox
        self._pipe = commands
        self._commands: queue.SimpleQueue[AnyCommand] = queue.SimpleQueue()
        self._hang_seconds = hang_seconds
        self._idle = 0.0
        self._last_message = -_HEARTBEAT_SECONDS
        self._step = 0
        self._committed = threading.Condition()
        self._commits = self._commits_done = 0
        threading.Thread(target=self._listen, name="commands", daemon=True).start()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def step(self) -> int:
        """The step of the last event that named one."""
        return self._step

    def emit(self, event: Event) -> None:
        """Send `event` to the runner, stamped with the time; never blocks on the runner."""
        if not event.time:
            event = msgspec.structs.replace(event, time=time.time())
        self._step = event.step or self._step
        self._idle = 0.0
        self._last_message = time.monotonic()
        self._outbox.put(encode(event))

    def poll(self) -> list[AnyCommand]:
        """The commands received since the last call, in order; does not wait."""
        commands = []
        while True:
            try:
                commands.append(self._commands.get_nowait())
            except queue.Empty:
                return commands

    def wait(self, timeout: float) -> list[AnyCommand]:
        """Like `poll`, but waits up to `timeout` seconds for a command, sending heartbeats."""
        deadline = time.monotonic() + timeout
        while True:
            self.heartbeat("waiting")
            remaining = deadline - time.monotonic()
            try:
                first = self._commands.get(timeout=min(max(remaining, 0.0), _HEARTBEAT_SECONDS))
                return [first, *self.poll()]
            except queue.Empty:
                if remaining <= 0:
                    return []

    def heartbeat(self, activity: str = "") -> None:
        """Report that the job is alive. Cheap; call it at least every few seconds of work."""
        self._idle = 0.0
        if time.monotonic() - self._last_message >= _HEARTBEAT_SECONDS:
            self.emit(Heartbeat(activity=activity))

    def commit(self) -> None:
        """Wait until the runner has committed the events sent so far.

        At most COMMIT_SECONDS: a runner that is suspended must not stop training.
        """
        self._commits += 1
        wanted = self._commits
        self.emit(Heartbeat(activity="committing", commit=wanted))
        with self._committed:
            self._committed.wait_for(lambda: self._commits_done >= wanted, COMMIT_SECONDS)

    @contextmanager
    def busy(self, activity: str, at_most: float = 3600.0) -> Iterator[None]:
        """Send heartbeats from a thread while the block runs, for at most `at_most` seconds: for a
        long call that can't send them itself, such as loading a model."""
        done = threading.Event()
        deadline = time.monotonic() + at_most

        def send_heartbeats() -> None:
            while not done.wait(_HEARTBEAT_SECONDS) and time.monotonic() < deadline:
                self.heartbeat(activity)

        self.heartbeat(activity)
        thread = threading.Thread(target=send_heartbeats, name="busy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        """Wait until all events have been sent to the runner."""
        self._outbox.close()
        self._outbox.join_thread()

    def _listen(self) -> None:
        while True:
            try:
                data = self._pipe.recv_bytes()
            except (EOFError, OSError):
                # The runner has exited, so nothing would record this job. The queue's feeder thread
                # may be stuck on a full queue, and a normal exit would wait for it.
                self._outbox.cancel_join_thread()
                os._exit(ORPHANED)
            if data.startswith(COMMITTED):
                with self._committed:
                    self._commits_done = int(data.removeprefix(COMMITTED))
                    self._committed.notify_all()
                continue
            try:
                self._commands.put(decode_command(data))
            except Exception as error:
                self.emit(LogLine(level="warning", text=f"a command can't be decoded: {error}"))

    def _watch(self) -> None:
        tick = min(1.0, self._hang_seconds / 4)
        while True:
            time.sleep(tick)
            # Ticks are counted, not clock time: a suspended process did not hang.
            self._idle += tick
            if self._idle > self._hang_seconds:
                _log(f"no heartbeat for {self._hang_seconds:g} s; the stacks of all threads:")
                faulthandler.dump_traceback(file=2, all_threads=True)
                os._exit(HUNG)


def run_worker(
    target: str, request: bytes, outbox: Any, commands: Connection, log_path: str
) -> None:
    """The main function of the spawned process: call `target` ("module:function") and exit.

    Exit codes: 0 or 1 as the job's main returned (1 after RunEnded(failed)), else it died.
    """
    _die_with_runner()
    _ignore_signals()
    _redirect_streams(Path(log_path))
    set_environment()
    # Also handles SIGABRT, with which the runner aborts a worker that never releases the GIL.
    faulthandler.enable(file=2)
    link = WorkerLink(outbox, commands, hang_seconds())
    code = _run_job(link, target, msgspec.json.decode(request, type=JobRequest))
    link.close()
    sys.exit(code)


def _run_job(link: WorkerLink, target: str, request: JobRequest) -> int:
    try:
        with link.busy("starting"):
            main = _load(target)
        return main(JobContext(link, can_finish=JOBS[request.job].can_finish), request)
    except GladiusError as error:
        reason = " ".join(str(error).split())
        code = int(error.exit_code)
        link.emit(RunEnded(step=link.step, status="failed", exit_code=code, reason=reason))
        _log(traceback.format_exc())
        return 1
    except BaseException as error:
        _log(traceback.format_exc())
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        link.emit(LogLine(step=link.step, level="error", text=summary))
        return CRASHED


def set_environment() -> None:
    """Settings that CUDA reads once, before torch is imported; the user's own values stay.

    Segments that grow leave fewer holes in GPU memory. With GPUs numbered by PCI bus, as the
    driver's tools do, the readings on the screen are those of the GPU that is used.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & set(os.environ):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def _load(target: str) -> Callable[[JobContext, JobRequest], int]:
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)


def _die_with_runner() -> None:
    """Let the system kill this process when its runner ends: it may be suspended then, and unable
    to notice. Only Linux can; elsewhere the end of the pipe must do."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    runner = multiprocessing.parent_process()
    if runner is not None and os.getppid() != runner.pid:
        os._exit(ORPHANED)  # it ended before the call


def _ignore_signals() -> None:
    """Leave signals to the runner: a terminal or a supervisor signals the whole process group."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    # The runner spawns with these blocked, so that none arrives before this line.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} worker {os.getpid()}: {text}", file=sys.stderr, flush=True)


class _UnfailingFile(io.FileIO):
    """A file whose failed writes are dropped: a full disk must not end training."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


class _ShownText(io.TextIOWrapper):
    """A stream that escapes control characters: tracebacks quote what others wrote."""

    def write(self, s: str, /) -> int:
        super().write(shown(s.replace("\r", "\n"), keep=LINES))
        return len(s)


def _redirect_streams(log_path: Path) -> None:
    """Append standard output and error, also those of C libraries, to the log."""
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    os.close(log)
    stream = _ShownText(
        io.BufferedWriter(_UnfailingFile(2, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    sys.stdout = sys.stderr = stream
