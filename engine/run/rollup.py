"""Metric series for charts: values by step, and their min/max roll-ups.

A roll-up of level n holds the extremes of 64**n steps, written on insert, so that a million steps
are read from a few thousand rows. The caller manages the transactions.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from engine.events import STUDENT, CapabilitiesScored, EvalDone, Event, LayerStats, StepDone

FACTOR = 64
LEVELS = 3
# Minimum buckets per column: with fewer, rounding to whole buckets would coarsen the chart.
_BUCKETS_PER_COLUMN = 8

SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, run INTEGER NOT NULL, metric TEXT NOT NULL, UNIQUE (run, metric)
);
CREATE TABLE IF NOT EXISTS points (
    series INTEGER, step INTEGER, value REAL, PRIMARY KEY (series, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rollups (
    series INTEGER, level INTEGER, bucket INTEGER, low REAL, high REAL, count INTEGER,
    total REAL, PRIMARY KEY (series, level, bucket)
) WITHOUT ROWID;
"""

STEP_METRICS = ("loss", "kl", "ce", "lr", "grad_norm", "tokens_per_sec", "step_seconds")


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column of a chart: the steps start <= step < stop; None where there is no value."""

    start: int
    stop: int
    low: float | None = None
    high: float | None = None
    first: float | None = None
    last: float | None = None
    count: int = 0
    """Number of finite values."""
    mean: float | None = None


def measurements(event: Event) -> Iterator[tuple[str, float | None]]:
    """The (metric, value) pairs of an event that charts show; None is a gap."""
    if isinstance(event, StepDone):
        for metric in STEP_METRICS:
            yield metric, getattr(event, metric)
    elif isinstance(event, EvalDone):
        yield "bits_per_byte", event.bits_per_byte
        for score in event.scores:
            yield f"bits_per_byte/{score.expert}", score.bits_per_byte
            yield f"kl/{score.expert}", score.kl
            yield f"agreement/{score.expert}", score.agreement
    elif isinstance(event, CapabilitiesScored) and event.who == STUDENT:
        for score in event.scores:
            yield f"able/{score.capability}", score.right / max(1, score.asked)
    elif isinstance(event, LayerStats):
        for group in event.groups:
            yield f"update/{group.kind}", _mean(group.update)
            yield f"moved/{group.kind}", _mean(group.moved)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def has_point(db: sqlite3.Connection, run: int, event: Event) -> bool:
    """Whether the run's series have the event's values."""
    metric = next((name for name, _ in measurements(event)), None)
    if metric is None:
        return True
    query = (
        "SELECT 1 FROM points WHERE step = ? AND series ="
        " (SELECT id FROM series WHERE run = ? AND metric = ?)"
    )
    return db.execute(query, (event.step, run, metric)).fetchone() is not None


def upgrade(db: sqlite3.Connection) -> None:
    """Add the column for means to an older database; its rows have NULL there."""
    if not _has_totals(db):
        db.execute("ALTER TABLE rollups ADD COLUMN total REAL")


def _has_totals(db: sqlite3.Connection) -> bool:
    return any(row[1] == "total" for row in db.execute("PRAGMA table_info(rollups)"))


class SeriesWriter:
    """Writes the series of a database inside the caller's transactions."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection
        self._ids: dict[tuple[int, str], int] = {}
        self._last: dict[int, int] = {}

    def add(self, run: int, events: Iterable[Event]) -> None:
        """Write the events' values. A step that is not after the series' last one replaces all
        values from that step on: the run went back to a checkpoint."""
        pending: dict[int, list[tuple[int, float | None]]] = {}
        for event in events:
            if isinstance(event, StepDone) and event.step <= self._last_step(run, "loss"):
                self._insert(pending)
                pending = {}
                self.cut(run, event.step)
            for metric, value in measurements(event):
                series = self._series(run, metric)
                if event.step <= self._last[series]:
                    self._insert(pending)
                    pending = {}
                    self._cut_series(series, event.step)
                finite = value if value is not None and math.isfinite(value) else None
                pending.setdefault(series, []).append((event.step, finite))
                self._last[series] = event.step
        self._insert(pending)

    def cut(self, run: int, step: int) -> None:
        """Delete the values of all series of the run from `step` on."""
        for (series,) in self._db.execute("SELECT id FROM series WHERE run = ?", (run,)).fetchall():
            self._cut_series(series, step)

    def forget(self) -> None:
        """Drop cached ids and steps, after a transaction was rolled back."""
        self._ids.clear()
        self._last.clear()

    def _last_step(self, run: int, metric: str) -> int:
        return self._last[self._series(run, metric)]

    def _series(self, run: int, metric: str) -> int:
        series = self._ids.get((run, metric))
        if series is None:
            self._db.execute(
                "INSERT OR IGNORE INTO series (run, metric) VALUES (?, ?)", (run, metric)
            )
            query = "SELECT id FROM series WHERE run = ? AND metric = ?"
            series = int(self._db.execute(query, (run, metric)).fetchone()[0])
            self._ids[run, metric] = series
        if series not in self._last:
            query = "SELECT max(step) FROM points WHERE series = ?"
            last = self._db.execute(query, (series,)).fetchone()[0]
            self._last[series] = -1 if last is None else last
        return series

    def _insert(self, pending: dict[int, list[tuple[int, float | None]]]) -> None:
        for series, values in pending.items():
            rows = [(series, step, value) for step, value in values]
            self._db.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", rows)
            for level in range(1, LEVELS + 1):
                buckets: dict[int, list[float]] = {}
                for step, value in values:
                    finite = buckets.setdefault(step // FACTOR**level, [])
                    if value is not None:
                        finite.append(value)
                self._db.executemany(
                    "INSERT INTO rollups (series, level, bucket, low, high, count, total)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (series, level, bucket) DO UPDATE SET"
                    " low = min(coalesce(low, excluded.low), coalesce(excluded.low, low)),"
                    " high = max(coalesce(high, excluded.high), coalesce(excluded.high, high)),"
                    " count = count + excluded.count, total = total + excluded.total",
                    [_bucket_row(series, level, bucket, v) for bucket, v in buckets.items()],
                )

    def _cut_series(self, series: int, step: int) -> None:
        self._db.execute("DELETE FROM points WHERE series = ? AND step >= ?", (series, step))
        self._last.pop(series, None)
        for level in range(1, LEVELS + 1):
            bucket = step // FACTOR**level
            self._db.execute(
                "DELETE FROM rollups WHERE series = ? AND level = ? AND bucket >= ?",
                (series, level, bucket),
            )
            # The bucket of `step` may have earlier steps: recompute it from the level below.
            if level == 1:
                left = (
                    "SELECT min(value), max(value), count(value), total(value) FROM points"
                    " WHERE series = ? AND step >= ? AND step < ? HAVING count(*) > 0"
                )
                arguments = (series, bucket * FACTOR, (bucket + 1) * FACTOR)
            else:
                left = (
                    "SELECT min(low), max(high), sum(count), sum(total) FROM rollups"
                    " WHERE series = ? AND level = ? AND bucket >= ? AND bucket < ?"
                    " HAVING count(*) > 0"
                )
                arguments = (series, level - 1, bucket * FACTOR, (bucket + 1) * FACTOR)
            self._db.execute(
                "INSERT INTO rollups (series, level, bucket, low, high, count, total)"
                f" SELECT {series}, {level}, {bucket}, * FROM ({left})",
                arguments,
            )
        query = "SELECT max(step) FROM points WHERE series = ?"
        last = self._db.execute(query, (series,)).fetchone()[0]
        self._last[series] = -1 if last is None else last


def _bucket_row(
    series: int, level: int, bucket: int, values: list[float]
) -> tuple[int, int, int, float | None, float | None, int, float]:
    low, high = min(values, default=None), max(values, default=None)
    return series, level, bucket, low, high, len(values), math.fsum(values)


def read_columns(
    db: sqlite3.Connection, run: int, metric: str, lo: int, hi: int, columns: int
) -> list[Column]:
    """The steps lo <= step < hi in at most `columns` (2 or more) columns of equal width.

    Columns start at multiples of their width, so that a chart does not flicker while panned; the
    first and the last one may therefore extend beyond lo and hi. Values are exact.
    """
    lo = max(lo, 0)
    found = db.execute(
        "SELECT id FROM series WHERE run = ? AND metric = ?", (run, metric)
    ).fetchone()
    if found is None or hi <= lo:
        return []
    series = int(found[0])
    width, level = _layout(lo, hi, max(columns, 2))
    start, stop = lo // width * width, -(-hi // width) * width
    if level == 0:
        query = (
            "SELECT step / ? AS c, min(value), max(value), count(value), avg(value) FROM points"
            " WHERE series = ? AND step >= ? AND step < ? GROUP BY c"
        )
        rows = db.execute(query, (width, series, start, stop)).fetchall()
    else:
        size = FACTOR**level
        # A total is only valid when every row has one (older rows have NULL).
        mean_sql = "CASE WHEN count(total) = count(*) THEN sum(total) / sum(count) END"
        query = (
            "SELECT bucket / ? AS c, min(low), max(high), sum(count),"
            f" {mean_sql if _has_totals(db) else 'NULL'} FROM rollups"
            " WHERE series = ? AND level = ? AND bucket >= ? AND bucket < ? GROUP BY c"
        )
        arguments = (width // size, series, level, start // size, stop // size)
        rows = db.execute(query, arguments).fetchall()
    seek = (
        "SELECT value FROM points WHERE series = ? AND step >= ? AND step < ?"
        " AND value IS NOT NULL ORDER BY step {} LIMIT 1"
    )
    by_column = {row[0]: row[1:] for row in rows}
    result = []
    for number in range(start // width, stop // width):
        begin, end = number * width, (number + 1) * width
        low, high, count, mean = by_column.get(number, (None, None, 0, None))
        first = last = None
        if count:
            first = db.execute(seek.format("ASC"), (series, begin, end)).fetchone()[0]
            last = db.execute(seek.format("DESC"), (series, begin, end)).fetchone()[0]
        result.append(
            Column(
                start=begin,
                stop=end,
                low=low,
                high=high,
                first=first,
                last=last,
                count=count,
                mean=mean,
            )
        )
    return result


def _layout(lo: int, hi: int, columns: int) -> tuple[int, int]:
    """The width of a column in steps, a multiple of 64**level, and the level to read."""
    width = max(1, -(-(hi - lo) // columns))
    while True:
        level = 0
        while level < LEVELS and FACTOR ** (level + 1) * _BUCKETS_PER_COLUMN <= width:
            level += 1
        size = FACTOR**level
        width = -(-width // size) * size
        # Whole columns may extend over both ends, which can be one column too many.
        if -(-hi // width) - lo // width <= columns:
            return width, level
        width += size
