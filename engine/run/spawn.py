"""A worker process as its runner handles it: spawn, queue of events, pipe of commands, exit."""

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
from engine.run.worker import COMMITTED, run_worker

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# After a worker ended: how long its pipe may stay silent before its reader is abandoned.
_QUIET_SECONDS = 1.0


class WorkerProcess:
    """A spawned worker.

    `on_message(data)` is called in a reading thread with every encoded event, in order. A worker
    killed in the middle of a message can block that thread forever; it is then abandoned, and the
    queue is never used again.

    Attributes:
        semaphores: the queue's names in /dev/shm; they stay there when all processes are killed.
    """

    def __init__(
        self,
        request: JobRequest,
        target: str,
        log_file: Path,
        on_message: Callable[[bytes], None],
    ) -> None:
        """Start the worker; `target` is the job's "module:function"."""
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()
        outbox = context.Queue()
        self.semaphores = _semaphore_names(outbox)
        reading_end, self._pipe = context.Pipe(duplex=False)
        # A suspended worker must not block its runner. A command is far shorter than PIPE_BUF, so
        # it is written completely or not at all.
        os.set_blocking(self._pipe.fileno(), False)
        # Not a daemon: daemons are ended with SIGTERM, which a worker ignores.
        self._process = context.Process(
            target=run_worker,
            args=(target, msgspec.json.encode(request), outbox, reading_end, str(log_file)),
            name=request.job,
        )
        # The worker inherits the mask, and unblocks the signals after it set its handlers.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
        reading_end.close()
        # With our copy open, the end of the worker would not be the end of its queue.
        outbox._writer.close()  # type: ignore[attr-defined]
        self._read_at = time.monotonic()
        self._reader = threading.Thread(
            target=self._read, args=(outbox, on_message), name="queue", daemon=True
        )
        self._reader.start()
        self._view = psutil.Process(self._process.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative signal number when a signal killed it."""
        return self._process.exitcode

    def drained(self) -> bool:
        """Whether all events of an ended worker have been read, as far as possible."""
        quiet = time.monotonic() - self._read_at > _QUIET_SECONDS
        return not self._reader.is_alive() or quiet

    def is_stopped(self) -> bool:
        """Whether it is suspended (SIGSTOP)."""
        try:
            return self._view.status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def send(self, command: AnyCommand) -> bool:
        """Send a command; False when it could not be sent."""
        try:
            self._pipe.send_bytes(encode(command))
            return True
        except OSError:
            return False

    def committed(self, number: int) -> None:
        """Tell the worker that the events up to its request of this number are committed."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(COMMITTED + str(number).encode())

    def signal(self, number: int) -> None:
        """Send a signal to the worker if it still runs."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the worker and wait until it has ended."""
        self.signal(signal.SIGKILL)
        self._process.join()

    def close(self) -> None:
        """Release the resources of an ended worker."""
        self._pipe.close()
        self._process.join()
        self._process.close()

    def _read(self, outbox: multiprocessing.Queue, on_message: Callable[[bytes], None]) -> None:
        while True:
            try:
                data = outbox.get()
            except queue.Empty:
                continue
            except Exception:  # end of file or half a message: nothing readable follows
                return
            self._read_at = time.monotonic()
            on_message(data)


def _semaphore_names(outbox: multiprocessing.Queue) -> tuple[str, ...]:
    locks = (getattr(outbox, name, None) for name in ("_rlock", "_wlock", "_sem"))
    return tuple(lock._semlock.name for lock in locks if lock is not None)
