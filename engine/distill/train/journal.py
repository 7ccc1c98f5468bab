"""Owns the journal: the decisions of a run, on disk before they take effect.

A decision holds for the steps after its own, whichever attempt takes them: a resume from the
checkpoint of step S replays all of them, those with a step beyond S too, when it comes to them.
So a resumed run takes the decisions of the run that nobody disturbed instead of making new ones.

A rollback goes back from step S to the checkpoint of step R: the trainer sets the checkpoints
after R aside, appends `rollback(step=R, value=factor)`, loads R, and does the steps after R again,
at the lower learning rate. (Killed between the two, the run goes on from R, meets the same bad
numbers and decides the same.) All other decisions stay in force. A resume from a checkpoint older
than R takes the steps up to R at the old rate, exactly as they were taken before.

Checkpoints and the meaning of decisions (phases.Schedule) are not owned here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine import workspace
from engine.distill.train.phases import Decision
from engine.errors import GladiusError


class Journal:
    """Decisions in one file of JSON lines; one writer at a time (the job's lock sees to that)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, decision: Decision) -> None:
        """Write a decision durably; it is on disk when this returns (GladiusError when not)."""
        try:
            workspace.append_line(self.path, msgspec.json.encode(decision))
        except OSError as error:
            raise GladiusError(
                f"can't write a decision of the run to {self.path}: {error.strerror}; "
                "make room, then resume"
            ) from error

    def read(self) -> list[Decision]:
        """All decisions in the order made; [] without a journal.

        A torn last line, left by a crash before its decision took effect, is skipped. Any other
        line that is no decision raises GladiusError: a run that forgets what it decided is not
        the same run.
        """
        return list(self._lines())

    def truncate(self, step: int) -> None:
        """Forget the decisions of step `step` and later, in one atomic replacement.

        For a run that goes on from a checkpoint before its decay with a new budget: the decay and
        the end that it had come to must be decided anew.
        """
        kept = [d for d in self._lines() if d.step < step]
        lines = b"".join(msgspec.json.encode(d) + b"\n" for d in kept)
        workspace.write_bytes(self.path, lines)

    def clear(self) -> None:
        """Begin anew (`--fresh`)."""
        if self.path.exists():
            workspace.write_bytes(self.path, b"")

    def _lines(self) -> Iterator[Decision]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        # What follows the last newline is torn, or nothing.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                yield msgspec.json.decode(line, type=Decision)
            except msgspec.MsgspecError as error:
                raise GladiusError(
                    f"{self.path} line {number} is damaged ({error}); "
                    "put it right by hand, or start anew with --fresh"
                ) from error
