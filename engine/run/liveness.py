"""Whether a worker is alive: reports stalls, and aborts a worker that hangs."""

from __future__ import annotations

import os
import signal
import time

from engine.events import GuardTripped
from engine.run.record import Recorder
from engine.run.spawn import WorkerProcess
from engine.run.worker import hang_seconds

STALL_VARIABLE = "GLADIUS_STALL_SECONDS"
_STALL_SECONDS = 30.0
_CLOCK_GAP_SECONDS = 5.0


class Liveness:
    """Time since the last message of the current attempt's worker, by the monotonic clock."""

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._stall_seconds = float(os.environ.get(STALL_VARIABLE) or _STALL_SECONDS)
        self._stall = ""
        self._received_at = self._checked_at = time.monotonic()

    def begin_attempt(self) -> None:
        """Start measuring for a new worker."""
        self._stall = ""
        self._received_at = self._checked_at = time.monotonic()

    def message_received(self) -> None:
        """The worker sent an event or a heartbeat."""
        self._received_at = time.monotonic()

    def check(self, worker: WorkerProcess) -> None:
        """Record a stall or its end; send SIGABRT to a worker whose own watchdog did not act."""
        now = time.monotonic()
        suspended = worker.is_stopped()
        # Time in which the worker, or this process, was suspended does not count as silence.
        if suspended or now - self._checked_at > _CLOCK_GAP_SECONDS:
            self._received_at = now
        self._checked_at = now
        silent = now - self._received_at
        stall = "stopped" if suspended else "stalled" if silent > self._stall_seconds else ""
        if stall != self._stall:
            self._stall = stall
            self._record.add(GuardTripped(guard="stall", action=stall or "going on"))
        if silent > hang_seconds() + self._stall_seconds:
            # The watchdog can't act when native code never releases the GIL. On SIGABRT,
            # faulthandler writes all stacks to the log.
            self._record.log("error", f"aborting the worker: no heartbeat for {silent:.0f} s")
            self._received_at = now
            worker.signal(signal.SIGABRT)
