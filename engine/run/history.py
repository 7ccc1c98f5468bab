"""Owns the history database: every event of every run, and the series of its metrics.

One writer for each run (its runner), any number of readers. Losing the database never stops a
job: a full or locked disk delays or drops rows, a damaged file is moved aside and begun anew.
"""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.events import AnyEvent, Job, RunStarted, StepDone, decode_event, encode
from engine.run import rollup
from engine.run.rollup import Column

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, run_id TEXT NOT NULL UNIQUE, job TEXT NOT NULL,
    config BLOB NOT NULL, started REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS attempts (
    run INTEGER, attempt INTEGER, started REAL NOT NULL, PRIMARY KEY (run, attempt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    run INTEGER, seq INTEGER, attempt INTEGER NOT NULL, step INTEGER NOT NULL,
    type TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (run, seq)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS events_by_type ON events (run, type, seq);
"""
    + rollup.SCHEMA
)

_CORRUPT, _NOT_A_DATABASE = 11, 26
# How long a write waits for another's: once, and while that other keeps it.
_LOCK_SECONDS = 1.0
_STILL_LOCKED_SECONDS = 0.02
# Events that wait for a database that can't be written now; older ones are dropped.
_MAX_WAITING = 20_000
_PART = 200
_MAX_CHECKED_BYTES = 256 << 20

T = TypeVar("T")


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the history knows it."""

    run_id: str
    job: Job
    config: bytes
    started: float
    attempts: int
    last_seq: int


class History:
    """The database at `path`; it is created by the first write, and reads of none are empty.

    Safe to use from several threads. Reads never raise for a missing or damaged file; `trouble`
    says in a line what goes wrong with it now, "" when nothing does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble = ""
        self.dropped = 0
        """Events that could not be stored."""
        self.skipped = 0
        """Stored rows that could not be read as events."""
        self.moved_aside = ""
        """Name of the damaged file that was replaced by a new one."""
        self._lock = threading.RLock()
        self._inode = 0
        self._db: sqlite3.Connection | None = None
        self._writable = False
        self._series: rollup.SeriesWriter | None = None
        self._begun: dict[str, tuple[Job, bytes, float]] = {}
        self._attempts: dict[str, int] = {}
        self._seq: dict[str, int] = {}
        self._waiting: list[tuple[str, int, AnyEvent]] = []

    # Writing

    def begin_run(self, run_id: str, job: Job, config: bytes) -> None:
        """Make the run known; one that is known already goes on."""
        with self._lock:
            self._begun[run_id] = (job, config, time.time())
            self._write(_check)
            self._write(lambda db: self._run_row(db, run_id))
            record = self.run(run_id)
            self._seq.setdefault(run_id, record.last_seq if record else 0)
            self._attempts.setdefault(run_id, record.attempts if record else 0)

    def begin_attempt(self, run_id: str) -> int:
        """The number, from 1, of the attempt that begins now."""
        with self._lock:
            attempt = self._attempts.get(run_id, 0) + 1
            self._attempts[run_id] = attempt

            def insert(db: sqlite3.Connection) -> None:
                row = (self._run_row(db, run_id), attempt, time.time())
                db.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", row)

            self._write(insert)
            return attempt

    def append(self, run_id: str, attempt: int, events: Sequence[AnyEvent]) -> list[AnyEvent]:
        """Number the events and commit them in one transaction; returns them with `seq` set.

        Never raises for the disk's sake: what can't be written now is tried again with the next
        call, and dropped (counted in `dropped`) when too much waits.
        """
        with self._lock:
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

    def close(self) -> None:
        """Write what waits, if it can be, and let go of the file."""
        with self._lock:
            self._write_waiting()
            self.dropped += len(self._waiting)
            self._waiting = []
            self._disconnect()

    # Reading

    def last_run(self, job: Job) -> RunRecord | None:
        """The newest run of this kind of job."""
        query = "SELECT run_id FROM runs WHERE job = ? ORDER BY id DESC LIMIT 1"
        row = self._read(lambda db: db.execute(query, (job,)).fetchone())
        return self.run(row[0]) if row else None

    def run(self, run_id: str) -> RunRecord | None:
        """The run of this id."""
        query = (
            "SELECT run_id, job, config, started,"
            " (SELECT coalesce(max(attempt), 0) FROM attempts WHERE run = id),"
            " (SELECT coalesce(max(seq), 0) FROM events WHERE run = id)"
            " FROM runs WHERE run_id = ?"
        )
        row = self._read(lambda db: db.execute(query, (run_id,)).fetchone())
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
        row = self._read(lambda db: db.execute(query, (run_id, type)).fetchone())
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
        """Unpaused worker time of the run so far, in seconds, as its last step told it."""
        step = self.last(run_id, "StepDone")
        return step.training_seconds if isinstance(step, StepDone) else 0.0

    def series(self, run_id: str, metric: str, lo: int, hi: int, columns: int) -> list[Column]:
        """The metric over the steps lo <= step < hi, reduced to at most `columns` columns; see
        `rollup.read_columns`. Steps that were done again count as they were done last."""

        def read(db: sqlite3.Connection) -> list[Column]:
            row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            return rollup.read_columns(db, row[0], metric, lo, hi, columns) if row else []

        return self._read(read) or []

    def metrics(self, run_id: str) -> list[str]:
        """The names of the run's series."""
        query = (
            "SELECT metric FROM series WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
            " ORDER BY id"
        )
        return [row[0] for row in self._rows(query, (run_id,))]

    # Inside

    def _run_row(self, db: sqlite3.Connection, run_id: str) -> int:
        """The run's number, its row written if need be (again, in a database begun anew)."""
        if run_id in self._begun:
            db.execute(
                "INSERT OR IGNORE INTO runs (run_id, job, config, started) VALUES (?, ?, ?, ?)",
                (run_id, *self._begun[run_id]),
            )
        row = db.execute("SELECT id FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise KeyError(f"run {run_id} was not begun")
        return int(row[0])

    def _write_waiting(self) -> None:
        # In parts: what fails now is tried with every call, and must stay cheap.
        while self._waiting:
            part = self._waiting[:_PART]
            if not self._write(lambda db, part=part: self._insert(db, part)):
                return
            del self._waiting[:_PART]

    def _insert(self, db: sqlite3.Connection, part: list[tuple[str, int, AnyEvent]]) -> None:
        assert self._series is not None
        for (run_id, attempt), rows in itertools.groupby(part, key=lambda row: row[:2]):
            run = self._run_row(db, run_id)
            batch: list[AnyEvent] = []
            for _, _, event in rows:
                row = (
                    run,
                    event.seq,
                    attempt,
                    event.step,
                    type(event).__name__,
                    encode(event).decode(),
                )
                db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?, ?)", row)
                if isinstance(event, RunStarted):
                    # It goes on from its checkpoint: what was done after that is void.
                    self._series.add(run, batch)
                    batch = []
                    resumed = event.resumed_from
                    self._series.cut(run, 0 if resumed is None else resumed + 1)
                batch.append(event)
            self._series.add(run, batch)

    def _rows(self, query: str, arguments: tuple) -> list[tuple]:
        return self._read(lambda db: db.execute(query, arguments).fetchall()) or []

    def _decode(self, body: str) -> AnyEvent | None:
        try:
            return decode_event(body)
        except (msgspec.MsgspecError, TypeError, UnicodeError):
            self.skipped += 1
            return None

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> bool:
        """Do `work` in a transaction; False (and `trouble`) when the database can't take it."""
        for _ in range(2):
            try:
                db = self._writer()
                patience = _STILL_LOCKED_SECONDS if self.trouble else _LOCK_SECONDS
                db.execute(f"PRAGMA busy_timeout = {patience * 1000:.0f}")
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    work(db)
                self.trouble = ""
                return True
            except (sqlite3.Error, OSError) as error:
                if self._series is not None:
                    self._series.forget()
                self.trouble = f"the history can't be written ({error})"
                if not _is_damage(error) or not self._move_aside():
                    return False
        return False

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        with self._lock:
            try:
                db = self._reader()
                return None if db is None else work(db)
            except (sqlite3.Error, OSError) as error:
                self.trouble = f"the history can't be read ({error})"
                self._disconnect()
                return None

    def _reader(self) -> sqlite3.Connection | None:
        if self._db is not None and self._writable:
            return self._db
        inode = self.path.stat().st_ino if self.path.exists() else 0
        if self._db is None or inode != self._inode:
            # None yet, or a runner has put a new file in its place.
            self._disconnect()
            self._inode = inode
            self._db = self._connect("ro") if inode else None
        return self._db

    def _writer(self) -> sqlite3.Connection:
        if self._db is not None and self._writable:
            return self._db
        self._disconnect()
        db = self._connect("rwc")
        try:
            # In WAL mode readers and the writer don't wait for each other; a crash of the process
            # loses nothing, one of the machine at most the last transactions.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            rollup.upgrade(db)
        except BaseException:
            db.close()
            raise
        self._db, self._writable, self._series = db, True, rollup.SeriesWriter(db)
        return db

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def _disconnect(self) -> None:
        db, self._db, self._series, self._writable = self._db, None, None, False
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:
                pass

    def _move_aside(self) -> bool:
        self._disconnect()
        aside = f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            for suffix in ("", "-wal", "-shm"):
                source = self.path.with_name(self.path.name + suffix)
                if source.exists():
                    source.rename(self.path.with_name(aside + suffix))
        except OSError as error:
            self.trouble = f"the damaged history can't be moved aside ({error})"
            return False
        self.moved_aside = aside
        return True


def _check(db: sqlite3.Connection) -> None:
    """Raise what `_is_damage` knows when the file is damaged; a very large one isn't looked at."""
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    if pages * db.execute("PRAGMA page_size").fetchone()[0] > _MAX_CHECKED_BYTES:
        return
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = _CORRUPT
        raise error


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (_CORRUPT, _NOT_A_DATABASE)
