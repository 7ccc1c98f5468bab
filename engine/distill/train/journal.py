"""The journal: the decisions of a run, on disk before they take effect.

A decision applies to the steps after its own, in every attempt: a resume from the checkpoint of
step S replays all of them, including those with a later step. So a resumed run makes the same
decisions as an uninterrupted one.

A rollback returns from step S to the checkpoint of step R: the checkpoints after R are moved aside,
`rollback(step=R, value=factor)` is appended, R is loaded, and the steps after R are repeated at the
lower learning rate. (If the run is killed in between, it resumes from R, reaches the same
non-finite steps and decides the same.) All other decisions stay. A resume from a checkpoint older
than R takes the steps up to R at the old rate, exactly as before.

Each line ends with the digest of all lines up to it, so that a changed digit is found; lines of
older versions have none. Checkpoints hold a copy, from which a damaged journal is restored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from engine import workspace
from engine.distill.train.phases import Decision, Schedule
from engine.errors import GladiusError
from engine.run.disk import retry_when_full
from engine.run.job import JobContext
from engine.small_files import Damaged, decode_json, read_bytes

_CHAIN_DIGITS = 16
_CHAIN = b',"chain":"'


class _Truncated(msgspec.Struct, frozen=True):
    """The first line of a journal from which decisions were removed: from these steps on."""

    truncated: tuple[int, ...]


@dataclass(frozen=True)
class _Content:
    """The valid lines of a journal.

    Attributes:
        lines: of the decisions, without their newlines.
        problem: what is wrong with the line after them; "" where nothing is.
    """

    truncated: tuple[int, ...]
    decisions: list[Decision]
    lines: list[bytes]
    chain: str
    problem: str

    def before(self, step: int) -> list[Decision]:
        return [d for d in self.decisions if d.step < step]


class Journal:
    """Decisions in a file of JSON lines; the job's lock allows only one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end: tuple[int, str] | None = None  # length of the file, and the chain there

    def append(self, decision: Decision) -> None:
        """Write a decision; it is on disk when this returns. Raises GladiusError."""
        try:
            line = _chained(msgspec.json.encode(decision), self._chain())
            workspace.append_line(self.path, line)
            self._end = self.path.stat().st_size, line[-_CHAIN_DIGITS - 2 : -2].decode()
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
        return self._content().decisions

    def data(self) -> bytes:
        """The journal as it is stored in a checkpoint."""
        content = self._content()
        return _encode(content.truncated, content.lines)

    def truncate(self, step: int) -> None:
        """Remove the decisions of step `step` and later, in one atomic replacement.

        For a run that resumes from before its decay with a larger budget: its decay and end are
        decided again.
        """
        content = self._content()
        kept = [msgspec.json.encode(d) for d in content.before(step)]
        chain, lines = "", []
        truncated = (*content.truncated, step)
        chain = _chain_of(_header(truncated))
        for line in kept:
            lines.append(_chained(line, chain))
            chain = lines[-1][-_CHAIN_DIGITS - 2 : -2].decode()
        self._write(_encode(truncated, lines))

    def clear(self) -> None:
        """Remove all decisions, for a new run."""
        if self.path.exists():
            self._write(b"")

    def restore(self, stored: bytes) -> str:
        """Compare with the journal of the checkpoint that the run resumes from, and restore it
        where that is needed; returns what was wrong, "" if nothing was.

        The decisions after the checkpoint stay, up to the first damaged line.
        """
        former = _parse(stored, "the checkpoint's journal")
        present = self._content(tolerant=True)
        added = present.truncated[len(former.truncated) :]
        extends = present.truncated[: len(former.truncated)] == former.truncated
        if added:
            limit = min(added)
            known, kept = former.before(limit), present.before(limit)
        else:
            known, kept = former.decisions, present.decisions
        if extends and kept[: len(known)] == known:
            if not present.problem:
                return ""
            self._write(_encode(present.truncated, present.lines))
            return f"{self.path} {present.problem}; the decisions from there on are made again"
        problem = present.problem or "differs from the checkpoint's copy"
        for number, (ours, theirs) in enumerate(
            zip(former.decisions, present.decisions, strict=False), start=1
        ):
            if ours != theirs:
                problem = f"line {number} has changed"
                break
        self._write(stored)
        return f"{self.path} {problem}; it was restored from the checkpoint"

    def _write(self, data: bytes) -> None:
        self._end = None
        workspace.write_bytes(self.path, data)

    def _chain(self) -> str:
        """Digest of the lines so far."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if self._end is None or self._end[0] != size:
            self._end = size, self._content().chain
        return self._end[1]

    def _content(self, tolerant: bool = False) -> _Content:
        """The journal; raises GladiusError for a damaged line unless `tolerant`."""
        try:
            data = read_bytes(self.path)
        except FileNotFoundError:
            data = b""
        except Damaged as error:
            if not tolerant:
                raise
            return _Content((), [], [], "", f"is damaged: {error.reason}")
        content = _parse(data, self.path)
        if content.problem and not tolerant:
            raise GladiusError(
                f"{self.path} {content.problem}; repair it by hand, or start a new run with --fresh"
            )
        return content


def _parse(data: bytes, source: str | Path) -> _Content:
    """The valid lines; what follows the last newline is incomplete or empty, and is skipped."""
    truncated: tuple[int, ...] = ()
    decisions: list[Decision] = []
    lines: list[bytes] = []
    chain, chained = "", False
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            body, digest = _split(line)
            following = _chain_of(body, chain)
            if digest is None and chained:
                raise Damaged(source, "it has no digest")
            if digest is not None and digest != following:
                raise Damaged(source, "its digest differs")
            if number == 1 and body.startswith(b'{"truncated":'):
                truncated = decode_json(body, _Truncated, source).truncated
            else:
                decisions.append(decode_json(body, Decision, source))
                lines.append(line)
        except Damaged as error:
            problem = f"line {number} is damaged ({error.reason})"
            return _Content(truncated, decisions, lines, chain, problem)
        chain, chained = following, chained or digest is not None
    return _Content(truncated, decisions, lines, chain, "")


def _encode(truncated: tuple[int, ...], lines: Iterable[bytes]) -> bytes:
    head = [_chained(_header(truncated), "")] if truncated else []
    return b"".join(line + b"\n" for line in (*head, *lines))


def _header(truncated: tuple[int, ...]) -> bytes:
    return msgspec.json.encode(_Truncated(truncated))


def _chain_of(body: bytes, chain: str = "") -> str:
    """Digest of a line and all before it."""
    return hashlib.sha256(chain.encode() + body).hexdigest()[:_CHAIN_DIGITS]


def _chained(body: bytes, chain: str) -> bytes:
    """The line with its digest as the last field."""
    return body[:-1] + _CHAIN + _chain_of(body, chain).encode() + b'"}'


def _split(line: bytes) -> tuple[bytes, str | None]:
    """A line without its digest, and the digest; None in a line of an older version."""
    end = len(_CHAIN) + _CHAIN_DIGITS + 2
    if line[-end:].startswith(_CHAIN):
        return line[:-end] + b"}", line[-_CHAIN_DIGITS - 2 : -2].decode(errors="replace")
    return line, None


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
