"""The training runs of a root as things with a name: list them, name them, compare them.

Names and notes are in a table of the history; all else is read from the run's events and series.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from engine.errors import GladiusError, MissingError, UsageError
from engine.events import RunEnded, RunStarted, decode_event
from engine.run.compaction import unpack
from engine.run.database import Database
from engine.run.lock import lock_owner
from engine.small_files import BAD_JSON
from engine.workspace import Workspace

RunStatus = Literal["preparing", "training", "paused", "stopped", "finished", "failed"]
"""`failed` includes a run whose runner was killed."""

MAX_NAME = 60
"""Characters of a name."""

_SCHEMA = "CREATE TABLE IF NOT EXISTS run_labels (run_id TEXT PRIMARY KEY, name TEXT, note TEXT)"
_ENDS: dict[str, RunStatus] = {"completed": "finished", "stopped": "stopped", "failed": "failed"}


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A training run in the list of runs."""

    run_id: str
    name: str = ""
    note: str = ""
    started: float = 0.0
    """Unix time."""
    preset: str = ""
    steps: int = 0
    """Last step in the history."""
    best_bits: float | None = None
    """Lowest bits per byte on held-out text."""
    status: RunStatus = "failed"

    @property
    def title(self) -> str:
        """The name, or the id of a run without one."""
        return self.name or self.run_id


class _Preset(msgspec.Struct):
    preset: str = ""


def list_runs(ws: Workspace) -> list[RunSummary]:
    """All training runs of the root, the newest first; [] without a history.

    A few reads by index for each run, whatever its length.
    """
    owner = lock_owner(ws, "train")
    database = Database(ws.history_file)
    try:
        return database.read(lambda db: _summaries(db, owner is not None)) or []
    finally:
        _close(database)


def find_run(ws: Workspace, word: str) -> RunSummary:
    """The run that `word` names: its name, its id, or the beginning of its id that no other has.

    Raises MissingError where there is none, UsageError where several begin so.
    """
    runs = list_runs(ws)
    exact = [run for run in runs if word in (run.run_id, run.name)]
    found = exact[:1] or [run for run in runs if word and run.run_id.startswith(word)]
    if not found:
        raise MissingError(f"no run {word!r} in {ws.root}; list them with: gladius_train runs")
    if len(found) > 1:
        raise UsageError(f"{word!r} is the beginning of {len(found)} runs; give more of the id")
    return found[0]


def check_name(ws: Workspace, name: str, run_id: str = "") -> str:
    """The name without surrounding space, if run `run_id` may have it.

    Raises UsageError for an empty or long name, one with control characters, or one that another
    run of the root has as its name or id.
    """
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(f"a run's name is one line of 1 to {MAX_NAME} characters, not {name!r}")
    for run in list_runs(ws):
        if run.run_id != run_id and name in (run.name, run.run_id):
            raise UsageError(f"run {run.run_id} is already called {name!r}; choose another name")
    return name


def label_run(ws: Workspace, run_id: str, *, name: str | None = None, note: str | None = None):
    """Set a run's name, its note or both; None leaves one as it is.

    Raises UsageError for a name that can't be used, GladiusError if the history can't be written.
    """
    if name is not None:
        name = check_name(ws, name, run_id)
    database = Database(ws.history_file)

    def write(db: sqlite3.Connection) -> None:
        db.execute(_SCHEMA)
        db.execute("INSERT OR IGNORE INTO run_labels VALUES (?, '', '')", (run_id,))
        for column, value in (("name", name), ("note", note)):
            if value is not None:
                query = f"UPDATE run_labels SET {column} = ? WHERE run_id = ?"
                db.execute(query, (value.strip(), run_id))

    try:
        with database.lock:
            if not database.write(write):
                raise GladiusError(f"the run was not named: {database.trouble}; try again")
    finally:
        _close(database)


def run_config(ws: Workspace, run_id: str) -> dict[str, Any]:
    """The config of a run as plain data, as its newest attempt had it."""
    database = Database(ws.history_file)

    def read(db: sqlite3.Connection) -> dict[str, Any]:
        row = db.execute("SELECT id, config FROM runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            return {}
        body = _newest(db, row[0], "RunStarted")
        started = _decoded(body)
        if isinstance(started, RunStarted) and started.config:
            return started.config
        try:
            return msgspec.json.decode(row[1], type=dict[str, Any])
        except msgspec.MsgspecError:
            return {}

    try:
        return database.read(read) or {}
    finally:
        _close(database)


def config_difference(
    one: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(field, value in `one`, value in `other`) of each field that differs; pure.

    Fields are written `section.field`; None stands for a field that a config does not have.
    """
    left, right = _leaves(one), _leaves(other)
    names = sorted(left.keys() | right.keys())
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def _leaves(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tables.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{name}.")
        else:
            found[name] = value
    return found


def _summaries(db: sqlite3.Connection, is_running: bool) -> list[RunSummary]:
    labels = _labels(db)
    query = "SELECT id, run_id, started, config FROM runs WHERE job = 'train' ORDER BY id DESC"
    found = []
    for n, (run, run_id, started, config) in enumerate(db.execute(query).fetchall()):
        name, note = labels.get(run_id, ("", ""))
        found.append(
            RunSummary(
                run_id=run_id,
                name=name,
                note=note,
                started=started,
                preset=_preset(config),
                steps=_last_step(db, run),
                best_bits=_best_bits(db, run),
                status=_status(db, run, is_running and n == 0),
            )
        )
    return found


def _labels(db: sqlite3.Connection) -> dict[str, tuple[str, str]]:
    try:
        rows = db.execute("SELECT run_id, name, note FROM run_labels").fetchall()
    except sqlite3.OperationalError:
        return {}  # no run of this root was named yet
    return {run_id: (name or "", note or "") for run_id, name, note in rows}


def _preset(config: bytes) -> str:
    try:
        return msgspec.json.decode(config, type=_Preset).preset
    except msgspec.MsgspecError:
        return ""


def _last_step(db: sqlite3.Connection, run: int) -> int:
    query = (
        "SELECT max(step) FROM points"
        " WHERE series = (SELECT id FROM series WHERE run = ? AND metric = 'loss')"
    )
    return db.execute(query, (run,)).fetchone()[0] or 0


def _best_bits(db: sqlite3.Connection, run: int) -> float | None:
    # The roll-up of the highest level has few rows, however long the run is.
    query = (
        "SELECT min(low) FROM rollups WHERE level = 3"
        " AND series = (SELECT id FROM series WHERE run = ? AND metric = 'bits_per_byte')"
    )
    return db.execute(query, (run,)).fetchone()[0]


def _status(db: sqlite3.Connection, run: int, is_running: bool) -> RunStatus:
    """From the newest event that changes it; `is_running`: whether a runner works on this run."""
    newest = (0, "")
    for kind in ("RunStarted", "StepDone", "RunPaused", "RunResumed", "RunEnded"):
        query = "SELECT max(seq) FROM events WHERE run = ? AND type = ?"
        newest = max(newest, (db.execute(query, (run, kind)).fetchone()[0] or 0, kind))
    kind = newest[1]
    if kind == "RunEnded":
        ended = _decoded(_newest(db, run, "RunEnded"))
        return _ENDS[ended.status] if isinstance(ended, RunEnded) else "failed"
    if not is_running:
        return "failed"
    return "paused" if kind == "RunPaused" else "training" if kind == "StepDone" else "preparing"


def _newest(db: sqlite3.Connection, run: int, kind: str) -> bytes | str | None:
    query = (
        "SELECT body FROM events INDEXED BY events_by_type WHERE run = ? AND type = ?"
        " ORDER BY seq DESC LIMIT 1"
    )
    row = db.execute(query, (run, kind)).fetchone()
    return row[0] if row else None


def _decoded(body: bytes | str | None) -> object:
    try:
        return None if body is None else decode_event(unpack(body))
    except (*BAD_JSON, TypeError):
        return None


def _close(database: Database) -> None:
    with database.lock:
        database.disconnect()
