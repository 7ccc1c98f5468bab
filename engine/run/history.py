"""The history: every event of every run, and the series of its metrics.

One writer for each run (its runner), any number of readers. Losing the database never stops a
job: a full or locked disk delays or drops rows, and a damaged file is replaced by a new one.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from engine.events import (
    AnyEvent,
    HardwareRead,
    Job,
    ProbeRead,
    Progress,
    RunStarted,
    SampleDrawn,
    StepDone,
    decode_event,
    encode,
)
from engine.run import rollup
from engine.run.compaction import pack, unpack
from engine.run.database import Database, check
from engine.run.rollup import Column
from engine.small_files import BAD_JSON

_MAX_WAITING = 20_000
"""Events that wait while the database can't be written; older ones are dropped."""
_PART = 200
_MAX_RECENT = 4000
"""Events that are written again when the file was deleted or replaced."""

_Row = tuple[str, int, AnyEvent]
"""Run, attempt, event."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run in the history."""

    run_id: str
    job: Job
    config: bytes
    started: float
    attempts: int
    last_seq: int


class HistoryReader:
    """Reads the history at `path`; a missing file reads as empty. For several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0
        """Stored rows that could not be decoded."""
        self._database = Database(path)

    @property
    def trouble(self) -> str:
        """The current problem with the file in one line; "" when there is none."""
        return self._database.trouble

    def close(self) -> None:
        """Close the file."""
        with self._database.lock:
            self._database.disconnect()

    def last_run(self, job: Job) -> RunRecord | None:
        """The newest run of this kind of job."""
        query = "SELECT run_id FROM runs WHERE job = ? ORDER BY id DESC LIMIT 1"
        row = self._database.read(lambda db: db.execute(query, (job,)).fetchone())
        return self.run(row[0]) if row else None

    def run(self, run_id: str) -> RunRecord | None:
        """The run of this id."""
        query = (
            "SELECT run_id, job, config, started,"
            " (SELECT coalesce(max(attempt), 0) FROM attempts WHERE run = id),"
            " (SELECT coalesce(max(seq), 0) FROM events WHERE run = id)"
            " FROM runs WHERE run_id = ?"
        )
        row = self._database.read(lambda db: db.execute(query, (run_id,)).fetchone())
        if row is None:
            return None
        return RunRecord(**dict(zip(RunRecord.__struct_fields__, row, strict=True)))

    def events(
        self,
        run_id: str,
        after_seq: int = 0,
        limit: int = 1000,
        types: Sequence[str] = (),
        up_to: int | None = None,
    ) -> list[AnyEvent]:
        """The first `limit` events with after_seq < seq (<= up_to), in order; all attempts.

        `types` narrows them to events of these names. Rows that can't be decoded are skipped and
        counted; a short list therefore does not mean that the end was reached, an empty one does.
        """
        condition = ""
        arguments: list[str | int] = []
        if types:
            condition += f" AND type IN ({', '.join('?' * len(types))})"
            arguments += types
        if up_to is not None:
            condition += " AND seq <= ?"
            arguments.append(up_to)
        query = (
            "SELECT seq, body FROM events WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            f" AND seq > ?{condition} ORDER BY seq LIMIT ?"
        )
        while rows := self._rows(query, (run_id, after_seq, *arguments, limit)):
            if found := [event for _, body in rows if (event := self._decode(body)) is not None]:
                return found
            after_seq = rows[-1][0]
        return []

    def last(self, run_id: str, type: str) -> AnyEvent | None:
        """The run's newest event of this name, such as "EvalDone"."""
        query = (
            "SELECT body FROM events WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            " AND type = ? ORDER BY seq DESC LIMIT 1"
        )
        row = self._database.read(lambda db: db.execute(query, (run_id, type)).fetchone())
        return self._decode(row[0]) if row else None

    def tail(self, run_id: str, type: str, limit: int, up_to: int | None = None) -> list[AnyEvent]:
        """The run's newest `limit` events of this name with seq <= `up_to`, in order."""
        # Without the hint SQLite walks back over all events, which is long where the type is rare.
        query = (
            "SELECT body FROM events INDEXED BY events_by_type"
            " WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            " AND type = ? AND seq <= ? ORDER BY seq DESC LIMIT ?"
        )
        most = up_to if up_to is not None else 1 << 62
        rows = self._rows(query, (run_id, type, most, limit))
        found = [event for (body,) in rows if (event := self._decode(body)) is not None]
        return found[::-1]

    def runs(self, job: Job, limit: int = 20) -> list[RunRecord]:
        """The newest runs of this kind of job, the newest first."""
        query = "SELECT run_id FROM runs WHERE job = ? ORDER BY id DESC LIMIT ?"
        found = [self.run(row[0]) for row in self._rows(query, (job, limit))]
        return [record for record in found if record is not None]

    def training_seconds(self, run_id: str) -> float:
        """Unpaused worker time of the run so far, in seconds, as the last step reported it."""
        step = self.last(run_id, "StepDone")
        return step.training_seconds if isinstance(step, StepDone) else 0.0

    def series(self, run_id: str, metric: str, lo: int, hi: int, columns: int) -> list[Column]:
        """The metric over the steps lo <= step < hi, reduced to at most `columns` columns; see
        `rollup.read_columns`. A repeated step has its last values."""

        def read(db: sqlite3.Connection) -> list[Column]:
            row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            return rollup.read_columns(db, row[0], metric, lo, hi, columns) if row else []

        return self._database.read(read) or []

    def metrics(self, run_id: str) -> list[str]:
        """The names of the run's series."""
        query = (
            "SELECT metric FROM series WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            " ORDER BY id"
        )
        return [row[0] for row in self._rows(query, (run_id,))]

    def _rows(self, query: str, arguments: tuple) -> list[tuple]:
        return self._database.read(lambda db: db.execute(query, arguments).fetchall()) or []

    def _decode(self, body: bytes | str) -> AnyEvent | None:
        try:
            return decode_event(unpack(body))
        except (*BAD_JSON, TypeError):
            self.skipped += 1
            return None


class History(HistoryReader):
    """Reads and writes the history; the first write creates the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.dropped = 0
        """Events that could not be stored."""
        self._begun: dict[str, tuple[Job, bytes, float]] = {}
        self._attempts: dict[str, int] = {}
        self._seq: dict[str, int] = {}
        self._waiting: list[_Row] = []
        self._recent: deque[_Row] = deque(maxlen=_MAX_RECENT)
        self._starts: dict[str, _Row] = {}
        self._generation = 0
        self._restarted = False

    def begin_run(self, run_id: str, job: Job, config: bytes) -> None:
        """Register a run; a run that is in the history continues."""
        with self._database.lock:
            self._begun[run_id] = (job, config, time.time())
            self._database.write(check)
            self._database.write(lambda db: self._run_row(db, run_id))
            record = self.run(run_id)
            self._seq.setdefault(run_id, record.last_seq if record else 0)
            self._attempts.setdefault(run_id, record.attempts if record else 0)

    def begin_attempt(self, run_id: str) -> int:
        """Register a new attempt; returns its number, from 1."""
        with self._database.lock:
            attempt = self._attempts.get(run_id, 0) + 1
            self._attempts[run_id] = attempt

            def insert(db: sqlite3.Connection) -> None:
                row = (self._run_row(db, run_id), attempt, time.time())
                db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", row)

            self._database.write(insert)
            return attempt

    def append(self, run_id: str, attempt: int, events: Sequence[AnyEvent]) -> list[AnyEvent]:
        """Number the events and commit them in one transaction; returns them with `seq` set.

        Disk errors are not raised: what can't be written is tried again with the next call, and
        dropped (counted in `dropped`) when too many events wait.
        """
        with self._database.lock:
            seq = self._seq.get(run_id, 0)
            numbered: list[AnyEvent] = []
            for number, event in enumerate(events, seq + 1):
                numbered.append(msgspec.structs.replace(event, seq=number))
            self._seq[run_id] = seq + len(numbered)
            self._waiting += [(run_id, attempt, event) for event in numbered]
            self._write_waiting()
            if len(self._waiting) > _MAX_WAITING:
                self.dropped += len(self._waiting) - _MAX_WAITING
                self._waiting = self._waiting[-_MAX_WAITING:]
            return numbered

    def lacking(self, run_id: str, events: Iterable[AnyEvent]) -> list[AnyEvent]:
        """Of metrics in the order in which they were reported, those from the first one on whose
        value is not in the run's series; of repeated steps only the last."""
        current: list[AnyEvent] = []
        for event in events:
            if isinstance(event, StepDone):
                current = [e for e in current if e.step < event.step]
            current.append(event)

        def first(db: sqlite3.Connection) -> int | None:
            row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            for event in current:
                if row is None or not rollup.has_point(db, row[0], event):
                    return event.step
            return None

        step = self._database.read(first)
        return [] if step is None else [event for event in current if event.step >= step]

    def take_restarted(self) -> bool:
        """Whether the file was deleted or replaced since the last call, and begun again."""
        restarted, self._restarted = self._restarted, False
        return restarted

    def take_moved_aside(self) -> str:
        """Name of a damaged file that was replaced since the last call; "" for none."""
        name, self._database.moved_aside = self._database.moved_aside, ""
        return name

    def close(self) -> None:
        """Write waiting events, if possible, and close the file."""
        with self._database.lock:
            self._write_waiting()
            self.dropped += len(self._waiting)
            self._waiting = []
            self._database.disconnect()

    def _run_row(self, db: sqlite3.Connection, run_id: str) -> int:
        """The run's row id; the row is written if missing, as in a database that was replaced."""
        if run_id in self._begun:
            db.execute(
                "INSERT OR IGNORE INTO runs (run_id, job, config, started) VALUES (?, ?, ?, ?)",
                (run_id, *self._begun[run_id]),
            )
        row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise KeyError(f"begin_run was not called for {run_id}")
        return int(row[0])

    def _write_waiting(self) -> None:
        # In parts: what fails is tried again with every call, which must stay cheap.
        try:
            self._restarted |= self._database.is_lost()
        except OSError:
            return  # its folder is gone too, and can't be made: tried again
        self._restore_recent()
        while self._waiting:
            part = self._waiting[:_PART]
            if not self._database.write(lambda db, part=part: self._insert(db, part)):
                return
            del self._waiting[:_PART]
            self._remember(part)
            self._restore_recent()

    def _remember(self, part: Sequence[_Row]) -> None:
        """Keep what a new file must have, should this one be lost."""
        for row in part:
            if isinstance(row[2], RunStarted):
                self._starts[row[0]] = row
            elif not isinstance(row[2], HardwareRead | Progress | ProbeRead | SampleDrawn):
                self._recent.append(row)

    def _restore_recent(self) -> None:
        """Write the recent events again when writing goes on in another file."""
        if self._generation != self._database.generation:
            self._generation = self._database.generation
            rows = sorted([*self._starts.values(), *self._recent], key=lambda row: row[2].seq)
            waiting = {row[2].seq for row in self._waiting}
            self._waiting = [r for r in rows if r[2].seq not in waiting] + self._waiting
            self._starts.clear()
            self._recent.clear()

    def _insert(self, db: sqlite3.Connection, part: list[tuple[str, int, AnyEvent]]) -> None:
        series = self._database.series
        assert series is not None
        for (run_id, attempt), rows in itertools.groupby(part, key=lambda row: row[:2]):
            run = self._run_row(db, run_id)
            if attempt:
                db.execute(
                    "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?)", (run, attempt, time.time())
                )
            batch: list[AnyEvent] = []
            for _, _, event in rows:
                row = (
                    run,
                    event.seq,
                    attempt,
                    event.step,
                    type(event).__name__,
                    pack(encode(event)),
                )
                db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
                if isinstance(event, RunStarted):
                    # It resumes from its checkpoint: values of later steps are void.
                    series.add(run, batch)
                    batch = []
                    resumed = event.resumed_from
                    series.cut(run, 0 if resumed is None else resumed + 1)
                batch.append(event)
            series.add(run, batch)
