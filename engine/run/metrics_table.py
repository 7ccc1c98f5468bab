"""Every metric of a run as a table with one row for each step, written as CSV or Parquet."""

from __future__ import annotations

import contextlib
import csv
import heapq
import importlib.util
import itertools
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import GladiusError, MissingError, UsageError
from engine.run.database import Database
from engine.workspace import Workspace

FORMATS = (".csv", ".parquet")
_BATCH = 20_000
"""Rows that are held in memory."""

Row = tuple[int, list[float | None]]
"""A step, and the value of each metric there; None: not measured at this step."""


def export_metrics(ws: Workspace, run_id: str, path: Path, *, force: bool = False) -> int:
    """Write all series of a run to `path`; returns the number of rows.

    The columns are `step` and one for each metric. The file appears when it is complete.

    Raises UsageError for another ending than .csv and .parquet, or for a file that exists unless
    `force` is set; MissingError where pyarrow is needed and missing, or the run has no metrics;
    GladiusError if the file can't be written.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: give a file name that ends in {' or '.join(FORMATS)}")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingError("Parquet needs pyarrow: pip install pyarrow; or write a .csv file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists; give another name, or --force to replace it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    database = Database(ws.history_file)
    try:
        count = database.read(lambda db: _write(db, run_id, temporary, path.suffix))
        if count is None:
            raise GladiusError(f"the metrics can't be read or written: {database.trouble}")
        if not count:
            raise MissingError(f"run {run_id} has no metrics yet: it has taken no step")
        os.replace(temporary, path)
    except OSError as error:
        raise GladiusError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
        with database.lock:
            database.disconnect()
    return count


def _write(db: sqlite3.Connection, run_id: str, path: Path, suffix: str) -> int:
    query = (
        "SELECT id, metric FROM series WHERE run = (SELECT id FROM runs WHERE run_id = ?)"
        " ORDER BY id"
    )
    series = db.execute(query, (run_id,)).fetchall()
    names = ["step", *(column_name(metric) for _, metric in series)]
    rows = merged_rows([_points(db, number) for number, _ in series])
    write = _write_csv if suffix == ".csv" else _write_parquet
    return write(path, names, rows)


def column_name(metric: str) -> str:
    """The column of a series: its name in the history, except for the capabilities."""
    prefix, slash, name = metric.partition("/")
    return f"capability/{name}" if slash and prefix == "able" else metric


def _points(db: sqlite3.Connection, series: int) -> Iterator[tuple[int, float | None]]:
    query = "SELECT step, value FROM points WHERE series = ? ORDER BY step"
    yield from db.execute(query, (series,))


def merged_rows(series: Sequence[Iterator[tuple[int, float | None]]]) -> Iterator[Row]:
    """One row for each step of any series, in order; pure.

    Args:
        series: (step, value) pairs, by step.
    """

    def numbered(
        column: int, points: Iterator[tuple[int, float | None]]
    ) -> Iterator[tuple[int, int, float | None]]:
        for step, value in points:
            yield step, column, value

    ordered = heapq.merge(
        *(numbered(column, points) for column, points in enumerate(series)),
        key=lambda point: point[:2],
    )
    for step, points in itertools.groupby(ordered, key=lambda point: point[0]):
        row: list[float | None] = [None] * len(series)
        for _, column, value in points:
            row[column] = value
        yield step, row


def _write_csv(path: Path, names: Sequence[str], rows: Iterator[Row]) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for step, values in rows:
            # repr: the value that was measured, to the last bit
            writer.writerow([step, *("" if v is None else repr(v) for v in values)])
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count


def _write_parquet(path: Path, names: Sequence[str], rows: Iterator[Row]) -> int:
    import pyarrow
    import pyarrow.parquet

    fields: list[Any] = [pyarrow.field(names[0], pyarrow.int64())]
    fields += [pyarrow.field(name, pyarrow.float64()) for name in names[1:]]
    schema = pyarrow.schema(fields)
    count = 0
    with contextlib.closing(pyarrow.parquet.ParquetWriter(path, schema)) as writer:
        while batch := list(itertools.islice(rows, _BATCH)):
            columns: list[Any] = [[step for step, _ in batch]]
            columns += [[values[n] for _, values in batch] for n in range(len(names) - 1)]
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(batch)
    return count
