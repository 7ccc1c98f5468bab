"""Parse, locate and check training-text sources: files, folders and data sets (`hf:...`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from engine.errors import MissingError, UsageError
from engine.text.examples import LeftOut
from engine.text.files import FORMATS, folder_files, format_of, text_bytes
from engine.text.parquet import INSTALL
from engine.text.pieces import FilePieces, Item

HUB = "hf:"
"""Prefix of a source that names a data set."""


class HubText(msgspec.Struct, frozen=True):
    """A column of a data set on the Hub, or of a local folder laid out as one."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str | None = None
    """None: the columns of the form that the rows have."""


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


def find_files(source: str) -> tuple[list[Path], list[LeftOut]]:
    """The text files at a path, a folder's sorted by name, and a folder's files that are not read.

    Raises UsageError if the path doesn't exist, has no text file, or is a file of a format that is
    not read.
    """
    path = Path(source)
    if path.is_file():
        if format_of(path) is None and not _looks_like_lines(path):
            raise UsageError(
                f"{path}: this format is not read; write it as {', '.join(FORMATS)} (docs/data.md)"
            )
        return [path], []
    if not path.is_dir():
        raise UsageError(f"{path} doesn't exist; give --data a file, a folder or hf:DATASET")
    found, others = folder_files(path)
    if not found:
        named = f"; not read: {', '.join(Path(o.where).name for o in others[:5])}" if others else ""
        raise UsageError(f"{path} has no {', '.join('*' + s for s in FORMATS)} files{named}")
    return found, others


def _looks_like_lines(path: Path) -> bool:
    """Whether a file without a known suffix begins as JSON Lines do, or is empty."""
    with open(path, "rb") as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return not start or start.startswith(b"{")


def source_files(source: str) -> list[Path]:
    """The text files at a path; see `find_files`."""
    return find_files(source)[0]


def source_bytes(source: str) -> int | None:
    """Bytes of a source's files; None for a data set on the Hub (not looked up)."""
    if source.startswith(HUB):
        return None
    return sum(text_bytes(file) for file in source_files(source))


def open_files(sources: Sequence[str], original: Callable[[Path], str] = str) -> FilePieces:
    """All files of the sources (paths) as one text; a file that is named twice is read once.

    original: see FilePieces. Raises UsageError, MissingError.
    """
    files: dict[Path, None] = {}
    others: list[LeftOut] = []
    for source in sources:
        found, left_out = find_files(source)
        files.update(dict.fromkeys(found))
        others += left_out
    title = sources[0] if len(sources) == 1 else ""
    return FilePieces(list(files), title, others, original)


def read_items(text: FilePieces) -> Iterator[Item]:
    """All items of the files, in order; first the files that are not read."""
    yield from text.files_left_out
    for piece in range(text.pieces):
        for _, item in text.read(piece, 0, 0):
            yield item


def check_hub(source: str) -> None:
    """UsageError or MissingError where a data set's name, or the library, is wrong or missing."""
    parse_hub(source)
    need_datasets(source)


def need_datasets(what: str) -> None:
    """Raise MissingError, with the remedy, where the library `datasets` is not installed."""
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        raise MissingError(f"{what} needs the libraries of the extra `data`; {INSTALL}")
