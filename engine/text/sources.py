"""Parse, locate and check training-text sources: files, folders and data sets (`hf:...`)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.errors import MissingError, UsageError
from engine.text.examples import Example, read_data_file
from engine.text.parquet import INSTALL, open_parquet, parquet_column
from engine.text.pieces import (
    PARQUET,
    PASSAGE_BYTES,
    PIECE_BYTES,
    PLAIN,
    SUFFIXES,
    FilePieces,
    decode_text,
)

SAMPLED_FILES, SAMPLED_LINES = 20, 20
"""`check_source` reads this many files of a source and lines of a file larger than a piece."""

HUB = "hf:"
"""Prefix of a source that names a data set."""


class HubText(msgspec.Struct, frozen=True):
    """A column of a data set on the Hub, or of a local folder laid out as one."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str | None = None
    """None: `messages` or `text`, whichever exists."""


def parse_hub(source: str) -> HubText:
    """`hf:DATASET[/CONFIG][@REVISION][:SPLIT[:COLUMN]]`; UsageError for anything else.

    DATASET is org/name, or the path of a folder; what follows the folder in the path is CONFIG.
    """
    parts = source.removeprefix(HUB).split(":")
    where, at, revision = parts[0].partition("@")
    if not source.startswith(HUB) or not where or len(parts) > 3 or (at and not revision):
        raise UsageError(
            f"{source!r} is not a data set; write hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT[:COLUMN]]"
        )
    path = Path(where).expanduser()
    if path.is_absolute() or where.startswith((".", "~")):
        folder = path
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        if folder == Path(folder.anchor) or folder == Path("."):
            raise UsageError(f"{source}: the folder {where} doesn't exist")
        config = str(path.relative_to(folder)) if path != folder else None
        dataset = str(folder.absolute())
    else:
        names = where.split("/")
        dataset, config = "/".join(names[:2]), "/".join(names[2:]) or None
    split, column = [*parts[1:], "", ""][:2]
    return HubText(dataset, config, revision or None, split or "train", column or None)


def absolute_source(source: str) -> str:
    """The source with its path made absolute."""
    if not source.startswith(HUB):
        return str(Path(source).expanduser().absolute())
    where, colon, rest = source.removeprefix(HUB).partition(":")
    if where.startswith((".", "~")):
        where = str(Path(where).expanduser().absolute())
    return f"{HUB}{where}{colon}{rest}"


def source_files(source: str) -> list[Path]:
    """The text files at a path, a folder's sorted by name; hidden files and folders are skipped.

    Raises UsageError if the path doesn't exist or has no text file.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path} doesn't exist; give --data a file, a folder or hf:DATASET")
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        found += [here / n for n in names if n.endswith(SUFFIXES) and not n.startswith(".")]
    if not found:
        raise UsageError(f"{path} has no {', '.join('*' + s for s in SUFFIXES)} files")
    return sorted(found)


def source_bytes(source: str) -> int | None:
    """Bytes of a source's files; None for a data set on the Hub (not looked up)."""
    if source.startswith(HUB):
        return None
    return sum(file.stat().st_size for file in source_files(source))


def check_source(source: str) -> None:
    """Check the beginning of a source; quick for any size.

    Raises:
        UsageError: it cannot be read; names the file and line.
        MissingError: a library that reads it is not installed.
    """
    if source.startswith(HUB):
        parse_hub(source)
        need_datasets(source)
        return
    for file in source_files(source)[:SAMPLED_FILES]:
        if file.suffix in PARQUET:
            parquet_column(open_parquet(file), file)
        elif file.suffix in PLAIN:
            with open(file, "rb") as opened:
                data = opened.read(PASSAGE_BYTES)
            decode_text(data, file, cut=len(data) == PASSAGE_BYTES)
        else:
            small = file.stat().st_size <= PIECE_BYTES
            for _ in itertools.islice(read_data_file(file), None if small else SAMPLED_LINES):
                pass


def need_datasets(what: str) -> None:
    """Raise MissingError, with the remedy, where the library `datasets` is not installed."""
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        raise MissingError(f"{what} needs the libraries of the extra `data`; {INSTALL}")


def read_source(source: str) -> Iterator[Example]:
    """All examples of a file or folder, in order; raises UsageError at the first invalid one."""
    for file in source_files(source):
        if file.suffix in (*PLAIN, *PARQUET):
            text = FilePieces([file])
            for piece in range(text.pieces):
                yield from (e for _, e in text.read(piece, 0, 0, _raise) if e is not None)
        else:
            yield from read_data_file(file)


def _raise(problem: str) -> None:
    raise UsageError(problem)
