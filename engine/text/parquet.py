"""Read examples from Parquet files, one row group at a time.

pyarrow is imported on first use: it belongs to the optional extra `data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import MissingError, UsageError
from engine.text.examples import Example, LeftOut
from engine.text.forms import KEYS, has_form, read_table_row

INSTALL = "install them with: pip install 'gladius[data]'"


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


def check_columns(opened: Any, file: Path) -> None:
    """Raises UsageError, with the columns that exist, if none of them is read."""
    text_column(list(opened.schema_arrow.names), None, str(file))


def text_column(columns: Sequence[str], chosen: str | None, source: str) -> str | None:
    """The column to train on: `chosen`; None where the rows have a form that is read.

    Raises UsageError, with the columns that exist, if there is no such column.
    """
    if chosen in columns if chosen else has_form(columns):
        return chosen
    lacks = f"column {chosen}" if chosen else "columns of a form that is read (messages, text, ...)"
    raise UsageError(
        f"{source} has no {lacks}, only {', '.join(columns)}; name one: hf:DATASET:SPLIT:COLUMN"
    )


def parquet_rows(file: Path, group: int, skip: int) -> Iterator[Example | LeftOut]:
    """The examples of one row group after its first `skip` rows."""
    opened = open_parquet(file)
    check_columns(opened, file)
    columns = [name for name in dict.fromkeys(KEYS) if name in opened.schema_arrow.names]
    row = 0
    for batch in opened.iter_batches(64, row_groups=[group], columns=columns):
        if row + len(batch) <= skip:
            row += len(batch)
            continue
        for values in batch.to_pylist():
            row += 1
            if row > skip:
                yield read_table_row(values, None, f"{file}, row {row} of group {group}")
