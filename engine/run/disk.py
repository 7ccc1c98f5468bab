"""Wait for room on a disk that is full, or that was turned read-only, instead of losing work."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable
from typing import TypeVar

from engine.events import GuardTripped, RunPaused, RunResumed
from engine.run.job import JobContext, JobStopped

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that may have room later."""
RETRY_VARIABLE = "GLADIUS_DISK_SECONDS"
_RETRY_SECONDS = 5.0
"""Seconds between two tries."""

_Result = TypeVar("_Result")


_TEXT = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust, such as safetensors, report the number of an error."""


def full_disk_error(error: BaseException | None) -> int | None:
    """The errno of a full or read-only disk, if `error` is one or was raised from one."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := _TEXT.search(str(error))):
            number = int(found[1])
        if number in FULL:
            return number
        error = error.__cause__
    return None


def retry_when_full(
    ctx: JobContext, write: Callable[[], _Result], *, what: str, step: int = 0
) -> _Result:
    """The result of `write`, which must leave nothing behind when it fails.

    While the disk is full or read-only the job is paused and `write` is called again every few
    seconds; commands are carried out meanwhile. Every other error is raised, and so is the one of
    a full disk once the job is to stop. `what` is written: "the checkpoint".
    """
    began: float | None = None
    while True:
        try:
            result = write()
            break
        except Exception as error:
            found = full_disk_error(error)
            if found is None or ctx.stop is not None:
                raise
            if began is None:
                began = time.monotonic()
                reason = f"{what} can't be written: {os.strerror(found).lower()}"
                action = f"{reason}; the run is paused and continues when there is room"
                ctx.emit(GuardTripped(step=step, guard="disk", action=action))
                ctx.emit(RunPaused(step=step, reason=reason))
        with contextlib.suppress(JobStopped):  # then one more try
            ctx.sleep(float(os.environ.get(RETRY_VARIABLE) or _RETRY_SECONDS), "waiting for room")
    if began is not None:
        ctx.paused_seconds += time.monotonic() - began
        ctx.emit(RunResumed(step=step))
    return result
