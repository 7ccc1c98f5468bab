"""Owns one worker process as its runner sees it: the queue from it, the pipe to it, its end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import msgspec
import psutil

from engine.events import AnyCommand, JobRequest, encode
from engine.run.worker import run_worker

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# After a worker's end: how long its queue may stay silent before its reader is abandoned.
_QUIET_SECONDS = 1.0


class WorkerProcess:
    """A spawned worker.

    `on_message(data)` is called in a reading thread with every encoded event, in order. A writer
    that was killed in the middle of a message can block its reader for good, so that thread is
    abandoned if need be, and the queue is never used again.
    """

    def __init__(
        self,
        request: JobRequest,
        target: str,
        log_file: Path,
        on_message: Callable[[bytes], None],
    ) -> None:
        """Start it: `target` is the "module:function" that does the job."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()
        outbox = context.Queue()
        ear, self._pipe = context.Pipe(duplex=False)
        # A stopped worker must not block its runner; a command is far shorter than PIPE_BUF, so
        # it is written whole or not at all.
        os.set_blocking(self._pipe.fileno(), False)
        # Not a daemon: those are ended by SIGTERM, which a worker ignores. `kill` ends it.
        self._process = context.Process(
            target=run_worker,
            args=(target, msgspec.json.encode(request), outbox, ear, str(log_file)),
            name=request.job,
        )
        # The worker inherits the mask, and lifts it when it has chosen what to ignore.
        former = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        ear.close()
        # With our copy open, the end of the worker would not be the end of its queue.
        outbox._writer.close()  # type: ignore[attr-defined]
        self._heard_at = time.monotonic()
        self._reader = threading.Thread(
            target=self._read, args=(outbox, on_message), name="queue", daemon=True
        )
        self._reader.start()
        self._view = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number where one ended it."""
        return self._process.exitcode

    def drained(self) -> bool:
        """Whether an ended worker's last words have been read, as far as they can be."""
        quiet = time.monotonic() - self._heard_at > _QUIET_SECONDS
        return not self._reader.is_alive() or quiet

    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP) and does not run on by itself."""
        try:
            return self._view.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def send(self, command: AnyCommand) -> bool:
        """Pass a command on; False when the worker can't take it."""
        try:
            self._pipe.send_bytes(encode(command))
            return True
        except OSError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to it, if it still runs."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now and wait for its end."""
        self.signal(signal.SIGKILL)
        self._process.join()

    def close(self) -> None:
        """Let go of an ended worker."""
        self._pipe.close()
        self._process.join()
        self._process.close()

    def _read(self, outbox: multiprocessing.Queue, on_message: Callable[[bytes], None]) -> None:
        while True:
            try:
                data = outbox.get()
            except queue.Empty:
                continue
            except Exception:  # the end, or half a message: nothing readable follows either way
                return
            self._heard_at = time.monotonic()
            on_message(data)
