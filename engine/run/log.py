"""Owns the plain-text log of a root: one line for every event worth a person's eye.

The streams of workers (tracebacks, warnings of libraries) go to the end of the same file.
"""

from __future__ import annotations

import time

from engine.events import (
    AnyEvent,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    GuardTripped,
    Job,
    LogLine,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from engine.workspace import Workspace

_SECONDS_BETWEEN_STEPS = 10.0


def describe(event: AnyEvent) -> str | None:
    """The event in one line; None for what is not worth one (readings, unfinished progress)."""
    match event:
        case RunStarted():
            where = f" on {event.device}" if event.device else ""
            since = "" if event.resumed_from is None else f", from step {event.resumed_from:,}"
            return f"{event.job} {event.run_id} attempt {event.attempt} started{where}{since}"
        case PhaseStarted():
            return f"phase {event.phase}/{event.phases} {event.name}"
        case DataReady():
            return (
                f"{event.expert}: {event.blocks:,} blocks, {event.positions:,} positions, "
                f"{event.aligned:.0%} aligned, {event.skipped_blocks:,} blocks skipped"
            )
        case StepDone(skipped=True):
            return f"step {event.step:,} skipped"
        case StepDone():
            return (
                f"step {event.step:,}  loss {_number(event.loss)}  kl {_number(event.kl)}  "
                f"ce {_number(event.ce)}  lr {event.lr:.2e}  {event.tokens_per_sec:,.0f} tok/s"
            )
        case EvalDone():
            best = "  best so far" if event.best else ""
            return f"step {event.step:,}  held-out {event.bits_per_byte:.4f} bits per byte{best}"
        case SampleDrawn():
            return f"sample {event.prompt!r} -> {event.text!r}"
        case CheckpointSaved():
            size = f"{event.bytes / 2**20:,.0f} MiB"
            return f"checkpoint {event.step:,} saved ({event.reason}), {size}: {event.path}"
        case CheckpointRejected():
            return f"checkpoint {event.path} rejected: {event.reason}; moved to {event.moved_to}"
        case GuardTripped(guard="worker"):
            return event.action
        case GuardTripped():
            return f"guard {event.guard} at step {event.step:,}: {event.action}"
        case Progress(finished=True):
            return f"{event.label}: done, {event.done:,.0f} {event.unit}".rstrip()
        case LogLine():
            return event.text if event.level == "info" else f"{event.level}: {event.text}"
        case RunPaused():
            return f"paused{_at(event)} ({event.reason})".removesuffix(" ()")
        case RunResumed():
            return f"going on{_at(event)}"
        case RunEnded():
            reason = f": {event.reason}" if event.reason else ""
            return f"{event.status}{_at(event)}{reason}"
    return None


def _at(event: AnyEvent) -> str:
    """` at step N`; empty for jobs that take no steps, and before the first."""
    return f" at step {event.step:,}" if event.step else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


class TextLog:
    """Appends to today's log; a line that can't be written is dropped."""

    def __init__(self, ws: Workspace, job: Job) -> None:
        self._ws = ws
        self._job = job
        self._step_at = 0.0

    def event(self, event: AnyEvent) -> None:
        """Write the event's line if it has one; of the steps, one every ten seconds."""
        if isinstance(event, StepDone) and not event.skipped:
            if time.monotonic() - self._step_at < _SECONDS_BETWEEN_STEPS:
                return
            self._step_at = time.monotonic()
        line = describe(event)
        if line is not None:
            self.line(line)

    def line(self, text: str) -> None:
        """Write one line, stamped with the local time; line breaks become spaces."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            with open(self._ws.log_file(), "ab", buffering=0) as file:
                line = f"{stamp} {self._job}: {' '.join(text.splitlines())}\n"
                file.write(line.encode("utf-8", "backslashreplace"))
        except OSError:
            pass
