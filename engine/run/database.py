"""The SQLite file of the history: connections, transactions, and replacing a damaged file."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.run import rollup

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
# How long a write waits for another process: the first time, and while that one still writes.
_LOCK_SECONDS = 1.0
_STILL_LOCKED_SECONDS = 0.02
_MAX_CHECKED_BYTES = 256 << 20
_WAL_PAGES = 32
"""Pages of 4 KiB in the write-ahead log, after which they move into the database."""

T = TypeVar("T")


class Database:
    """The database at `path`, for several threads.

    The first write creates it; reads of a missing or damaged file return None and never raise.

    Attributes:
        lock: `read` takes it; hold it around `write`.
        series: writes metric series, while a write is in progress.
        trouble: the current problem with the file in one line; "" when there is none.
        moved_aside: name of the damaged file that was replaced by a new one.
        generation: changes when writing goes on in another file than before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.series: rollup.SeriesWriter | None = None
        self.trouble = ""
        self.moved_aside = ""
        self.generation = 0
        self._inode = 0
        self._written_file: tuple[int, int] | None = None
        self._side_files: dict[Path, tuple[int, int] | None] = {}
        self._db: sqlite3.Connection | None = None
        self._writable = False

    def write(self, work: Callable[[sqlite3.Connection], object]) -> bool:
        """Do `work` in a transaction; False, with `trouble` set, when it failed."""
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
                if self.series is not None:
                    self.series.forget()
                self.trouble = f"the history can't be written ({error})"
                if not _is_damage(error) or not self._move_aside():
                    return False
        return False

    def is_lost(self) -> bool:
        """Whether the file that is written was deleted or replaced since it was opened; it is then
        closed, and the next write opens or creates what is at the path now."""
        if not self._writable or self._written_file == _identity(self.path):
            return False
        self.disconnect()
        # Its write-ahead log would be taken for that of the file that is at the path now.
        for path, identity in self._side_files.items():
            if identity is not None and _identity(path) == identity:
                path.unlink(missing_ok=True)
        self.generation += 1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return True

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result of `work`; None, with `trouble` set, when it failed."""
        with self.lock:
            try:
                db = self._reader()
                return None if db is None else work(db)
            except (sqlite3.Error, OSError) as error:
                self.trouble = f"the history can't be read ({error})"
                self.disconnect()
                return None

    def _reader(self) -> sqlite3.Connection | None:
        if self._db is not None and self._writable:
            return self._db
        inode = self.path.stat().st_ino if self.path.exists() else 0
        if self._db is None or inode != self._inode:
            # Not open yet, or a runner has replaced the file.
            self.disconnect()
            self._inode = inode
            self._db = self._connect("ro") if inode else None
        return self._db

    def _writer(self) -> sqlite3.Connection:
        if self._db is not None and self._writable:
            return self._db
        self.disconnect()
        db = self._connect("rwc")
        try:
            # In WAL mode readers and the writer don't wait for each other; a crash of the process
            # loses nothing, one of the machine at most the last transactions.
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
            db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * 4096}")
            db.executescript(_SCHEMA)
            rollup.upgrade(db)
        except BaseException:
            db.close()
            raise
        self._db, self._writable, self.series = db, True, rollup.SeriesWriter(db)
        self._written_file = _identity(self.path)
        names = (self.path.name + suffix for suffix in ("-wal", "-shm"))
        self._side_files = {path: _identity(path) for path in map(self.path.with_name, names)}
        return db

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=_LOCK_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )

    def disconnect(self) -> None:
        """Close the file; the next read or write opens it again."""
        db, self._db, self.series, self._writable = self._db, None, None, False
        if db is not None:
            try:
                db.close()
            except sqlite3.Error:
                pass

    def _move_aside(self) -> bool:
        self.disconnect()
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
        self.generation += 1
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check(db: sqlite3.Connection) -> None:
    """Raise a DatabaseError when the file is damaged; a very large file is not checked."""
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
