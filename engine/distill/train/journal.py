"""The journal: the decisions of a run, on disk before they take effect.

A decision applies to the steps after its own, in every attempt: a resume from the checkpoint of
step S replays all of them, including those with a later step. So a resumed run makes the same
decisions as an uninterrupted one.

A rollback returns from step S to the checkpoint of step R: the checkpoints after R are moved aside,
`rollback(step=R, value=factor)` is appended, R is loaded, and the steps after R are repeated at the
lower learning rate. (If the run is killed in between, it resumes from R, reaches the same
non-finite steps and decides the same.) All other decisions stay. A resume from a checkpoint older
than R takes the steps up to R at the old rate, exactly as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from engine import workspace
from engine.distill.train.phases import Decision, Schedule
from engine.errors import GladiusError
from engine.run.disk import retry_when_full
from engine.run.job import JobContext


class Journal:
    """Decisions in a file of JSON lines; the job's lock allows only one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, decision: Decision) -> None:
        """Write a decision; it is on disk when this returns. Raises GladiusError."""
        try:
            workspace.append_line(self.path, msgspec.json.encode(decision))
        except OSError as error:
            raise GladiusError(
                f"can't write to the run's journal {self.path}: {error.strerror}; "
                "free some disk space, then resume"
            ) from error

    def read(self) -> list[Decision]:
        """All decisions in order; [] without a journal.

        An incomplete last line, left by a crash before its decision took effect, is skipped. Raises
        GladiusError for any other line that is not a decision: without it the run would differ.
        """
        return list(self._lines())

    def truncate(self, step: int) -> None:
        """Remove the decisions of step `step` and later, in one atomic replacement.

        For a run that resumes from before its decay with a larger budget: its decay and end are
        decided again.
        """
        kept = [d for d in self._lines() if d.step < step]
        lines = b"".join(msgspec.json.encode(d) + b"\n" for d in kept)
        workspace.write_bytes(self.path, lines)

    def clear(self) -> None:
        """Remove all decisions, for a new run."""
        if self.path.exists():
            workspace.write_bytes(self.path, b"")

    def _lines(self) -> Iterator[Decision]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        # What follows the last newline is incomplete or empty.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                yield msgspec.json.decode(line, type=Decision)
            except msgspec.MsgspecError as error:
                raise GladiusError(
                    f"{self.path} line {number} is damaged ({error}); "
                    "repair it by hand, or start a new run with --fresh"
                ) from error


class RunPlan:
    """The current schedule of a run; every decision goes to the journal first.

    With `ctx` the run is paused while the journal's disk is full.
    """

    def __init__(self, schedule: Schedule, journal: Journal, ctx: JobContext | None = None) -> None:
        self.schedule = schedule
        self.journal = journal
        self._ctx = ctx

    def decide(self, decisions: Iterable[Decision]) -> None:
        """Write decisions to the journal, then apply them. Raises GladiusError."""
        for decision in decisions:
            self._append(decision)
            self.schedule = self.schedule.with_decision(decision)

    def _append(self, decision: Decision) -> None:
        if self._ctx is None:
            self.journal.append(decision)
            return
        retry_when_full(
            self._ctx,
            lambda: self.journal.append(decision),
            what="the journal",
            step=decision.step,
        )
