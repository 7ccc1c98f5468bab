"""Read examples from Parquet files, one row group at a time.

pyarrow is imported on first use: it belongs to the optional extra `data`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import MissingError, UsageError
from engine.text.examples import OPTIONAL, Example, example_of

INSTALL = "install them with: pip install 'gladius[data]'"

Warn = Callable[[str], None]
"""Receives one message for each example that cannot be read."""


def open_parquet(file: Path) -> Any:
    """The file as a `pyarrow.parquet.ParquetFile`; only its footer is read.

    Raises:
        MissingError: pyarrow is not installed.
        UsageError: the file is not Parquet.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingError(f"{file} needs the libraries of the extra `data`; {INSTALL}") from error
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{file} is not a readable Parquet file ({reason})") from error


def parquet_column(opened: Any, file: Path) -> str:
    """The text column of an opened file; raises UsageError if it has none."""
    return text_column(list(opened.schema_arrow.names), None, str(file))


def text_column(columns: Sequence[str], chosen: str | None, source: str) -> str:
    """The column to train on: `chosen`, else `messages` or `text`.

    Raises UsageError, with the columns that exist, if there is no such column.
    """
    found = [name for name in ((chosen,) if chosen else ("messages", "text")) if name in columns]
    if not found:
        lacks = f"column {chosen}" if chosen else "column `messages` or `text`"
        raise UsageError(
            f"{source} has no {lacks}, only {', '.join(columns)}; name one: hf:DATASET:SPLIT:COLUMN"
        )
    return found[0]


def parquet_rows(file: Path, group: int, skip: int, warn: Warn) -> Iterator[Example | None]:
    """The examples of one row group after its first `skip` rows; None for an unreadable row."""
    opened = open_parquet(file)
    column = parquet_column(opened, file)
    extra = [n for n in OPTIONAL if n in opened.schema_arrow.names]
    row = 0
    for batch in opened.iter_batches(64, row_groups=[group], columns=[column, *extra]):
        if row + len(batch) <= skip:
            row += len(batch)
            continue
        for values in batch.to_pylist():
            row += 1
            if row > skip:
                source = f"{file}, row {row} of group {group}"
                yield example_or_warning(values, column, source, warn)


def example_or_warning(
    values: dict[str, Any], column: str, source: str, warn: Warn
) -> Example | None:
    """A table row as an example; None, after a warning, if it is not a valid one."""
    try:
        return example_of(values, column)
    except ValueError as error:
        warn(f"{source}: {' '.join(str(error).split())}")
        return None
