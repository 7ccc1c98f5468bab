"""Owns what may be given as text to learn from: files, folders and data sets, cut into pieces that
can be read in any order and from any place.

No torch; pyarrow and datasets are imported where they are needed (extra `data`). It does not own
the order of reading (`distill.streams`), nor the format of an example (`textdata`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from engine.errors import GladiusError, MissingError, UsageError
from engine.text.examples import OPTIONAL, Example, decode_line, example_of, read_data_file

PIECE_BYTES = 1 << 20
"""Files are read in pieces of about this size; small ones share a piece."""
PASSAGE_BYTES = 1 << 15
"""A text file longer than this is read in passages: documents whose end was cut."""
SAMPLED_FILES, SAMPLED_LINES = 20, 20
"""Of a source, and of a file larger than a piece, that are checked before a run."""

HUB = "hf:"
_LINES, _PLAIN, _PARQUET = (".jsonl",), (".txt", ".md"), (".parquet",)
SUFFIXES = (*_LINES, *_PLAIN, *_PARQUET)
INSTALL = "install them with: pip install 'gladius[data]'"

Warn = Callable[[str], None]


class HubText(msgspec.Struct, frozen=True):
    """A column of a data set on the Hub, or of a local folder laid out as one."""

    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    column: str | None = None
    """None: `messages` or `text`, whichever there is."""


def parse_hub(source: str) -> HubText:
    """`hf:DATASET[/CONFIG][@REVISION][:SPLIT[:COLUMN]]`; UsageError for anything else.

    DATASET is org/name, or a folder (what of the path is no folder names the config).
    """
    parts = source.removeprefix(HUB).split(":")
    where, at, revision = parts[0].partition("@")
    if not source.startswith(HUB) or not where or len(parts) > 3 or (at and not revision):
        raise UsageError(
            f"{source!r} is no data set; write hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT[:COLUMN]]"
        )
    path = Path(where).expanduser()
    if path.is_absolute() or where.startswith((".", "~")):
        folder = path
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        if folder == Path(folder.anchor) or folder == Path("."):
            raise UsageError(f"{source}: there is no folder {where}")
        config = str(path.relative_to(folder)) if path != folder else None
        dataset = str(folder.absolute())
    else:
        names = where.split("/")
        dataset, config = "/".join(names[:2]), "/".join(names[2:]) or None
    split, column = [*parts[1:], "", ""][:2]
    return HubText(dataset, config, revision or None, split or "train", column or None)


def absolute_source(source: str) -> str:
    """A source that means the same from another working directory."""
    if not source.startswith(HUB):
        return str(Path(source).expanduser().absolute())
    where, colon, rest = source.removeprefix(HUB).partition(":")
    if where.startswith((".", "~")):
        where = str(Path(where).expanduser().absolute())
    return f"{HUB}{where}{colon}{rest}"


def source_files(source: str) -> list[Path]:
    """The files of a path, a folder's in the order of their names; UsageError where none is text.

    Hidden files and folders are passed over.
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
        raise UsageError(f"{path} holds no {', '.join('*' + s for s in SUFFIXES)}")
    return sorted(found)


def source_bytes(source: str) -> int | None:
    """Bytes of a source's files; None for a data set, whose size is not looked up."""
    if source.startswith(HUB):
        return None
    return sum(file.stat().st_size for file in source_files(source))


def check_source(source: str) -> None:
    """A look at the beginning of a source, in a moment whatever its size.

    UsageError names the file and line that can't be read; MissingError the library that lacks.
    """
    if source.startswith(HUB):
        parse_hub(source)
        need_datasets(source)
        return
    for file in source_files(source)[:SAMPLED_FILES]:
        if file.suffix in _PARQUET:
            _parquet_column(_open_parquet(file), file)
        elif file.suffix in _PLAIN:
            with open(file, "rb") as opened:
                data = opened.read(PASSAGE_BYTES)
            _decoded(data, file, cut=len(data) == PASSAGE_BYTES)
        else:
            small = file.stat().st_size <= PIECE_BYTES
            for _ in itertools.islice(read_data_file(file), None if small else SAMPLED_LINES):
                pass


def need_datasets(what: str) -> None:
    """MissingError, with the remedy, where the library `datasets` is not installed."""
    from importlib.util import find_spec

    if find_spec("datasets") is None:
        raise MissingError(f"{what} is read by the libraries of the extra `data`; {INSTALL}")


def read_source(source: str) -> Iterator[Example]:
    """All examples of a file or folder, in order; UsageError where one can't be read."""
    for file in source_files(source):
        if file.suffix in (*_PLAIN, *_PARQUET):
            text = FileText([file])
            for piece in range(text.pieces):
                yield from (e for _, e in text.read(piece, 0, 0, _raise) if e is not None)
        else:
            yield from read_data_file(file)


def _raise(problem: str) -> None:
    raise UsageError(problem)


class Text(Protocol):
    """Text in pieces. A piece is read from a place in it: (part, examples of the part passed)."""

    @property
    def title(self) -> str: ...
    @property
    def pieces(self) -> int: ...
    @property
    def size(self) -> int | None:
        """Bytes; None where not known."""
        ...

    @property
    def fingerprint(self) -> str:
        """What the pieces depend on: cursors of another text mean nothing here."""
        ...

    def read(
        self, piece: int, part: int, passed: int, warn: Warn
    ) -> Iterator[tuple[int, Example | None]]:
        """The examples from a place on, each with its part; None for one that can't be read.

        `warn` is told of those, with file and line.
        """
        ...


@dataclass(frozen=True)
class _Segment:
    """A range of a file: bytes, or one row group of Parquet."""

    file: Path
    start: int
    stop: int


class FileText:
    """Files of JSON Lines, plain text and Parquet. Nothing of them is read before it is asked for,
    except the footers of Parquet."""

    def __init__(self, files: Sequence[Path], title: str = "") -> None:
        self.title = title or (str(files[0]) if len(files) == 1 else f"{len(files)} files")
        self.size = 0
        digest = hashlib.sha256()
        self._pieces: list[list[_Segment]] = []
        room = 0
        for file in files:
            size = file.stat().st_size
            self.size += size
            digest.update(f"{file}\0{size}\n".encode())
            if file.suffix in _PARQUET:
                groups = _open_parquet(file).metadata.num_row_groups
                self._pieces += [[_Segment(file, n, n + 1)] for n in range(groups)]
                room = 0
            elif size <= room:
                self._pieces[-1].append(_Segment(file, 0, size))
                room -= size
            else:
                starts = range(0, size, PIECE_BYTES)
                self._pieces += [[_Segment(file, s, min(s + PIECE_BYTES, size))] for s in starts]
                room = -size % PIECE_BYTES if size < PIECE_BYTES else 0
        self.fingerprint = digest.hexdigest()

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    def read(
        self, piece: int, part: int, passed: int, warn: Warn
    ) -> Iterator[tuple[int, Example | None]]:
        for number, segment in enumerate(self._pieces[piece]):
            if number < part:
                continue
            skip = passed if number == part else 0
            for count, example in enumerate(_read_segment(segment, skip, warn)):
                if segment.file.suffix in _PARQUET or count >= skip:
                    yield number, example


def _read_segment(segment: _Segment, skip: int, warn: Warn) -> Iterator[Example | None]:
    """The examples of a segment; only Parquet passes over `skip` of them by itself."""
    try:
        if segment.file.suffix in _PARQUET:
            yield from _parquet_rows(segment.file, segment.start, skip, warn)
        elif segment.file.suffix in _PLAIN:
            yield from _passages(segment, warn)
        else:
            yield from _lines(segment, warn)
    except OSError as error:
        raise GladiusError(
            f"{segment.file}: {error.strerror or error}; put the text back, then resume"
        ) from error


def _lines(segment: _Segment, warn: Warn) -> Iterator[Example | None]:
    """The lines of JSON that begin in the segment."""
    with open(segment.file, "rb") as file:
        at = segment.start
        if at:
            # The line that begins before the segment belongs to the one before.
            file.seek(at - 1)
            at += len(file.readline()) - 1
        while at < segment.stop and (line := file.readline()):
            begin, at = at, at + len(line)
            line = line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
            if not line.strip():
                continue
            try:
                yield decode_line(line)
            except ValueError as error:
                number = _line_number(segment.file, begin)
                warn(f"{segment.file}, line {number}: {' '.join(str(error).split())}")
                yield None


def _line_number(path: Path, offset: int) -> int:
    """Number of the line that begins at a byte, from 1."""
    count = 1
    with open(path, "rb") as file:
        while offset > 0 and (data := file.read(min(offset, PIECE_BYTES))):
            count += data.count(b"\n")
            offset -= len(data)
    return count


def _passages(segment: _Segment, warn: Warn) -> Iterator[Example | None]:
    """A text file as one document, or as passages of about PASSAGE_BYTES, cut at white space."""
    with open(segment.file, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at, stop = (_boundary(file, offset, size) for offset in (segment.start, segment.stop))
        while at < stop:
            file.seek(at)
            data = file.read(min(PASSAGE_BYTES, stop - at))
            if at + len(data) < stop:
                data = data[: _cut(data)]
            begin, at = at, at + len(data)
            data = data.removeprefix(b"\xef\xbb\xbf") if begin == 0 else data
            try:
                text = _decoded(data, segment.file, begin).strip("\n")
            except UsageError as error:
                warn(str(error))
                yield None
                continue
            if text.strip():
                yield Example(text=text, complete=at >= size)


def _boundary(file: Any, offset: int, size: int) -> int:
    """The first place at or after `offset` where a passage may begin."""
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    file.seek(offset - 1)
    data = file.read(PASSAGE_BYTES)
    for mark in (b"\n", b" "):
        if (found := data.find(mark)) >= 0:
            return offset + found
    place = 1
    while place < len(data) and data[place] & 0xC0 == 0x80:  # inside a character
        place += 1
    return offset - 1 + place


def _cut(data: bytes) -> int:
    """Where a passage that goes on ends: after a blank line, a line, a word, or a character."""
    half = len(data) // 2
    for mark in (b"\n\n", b"\n", b" "):
        if (found := data.rfind(mark, half)) >= 0:
            return found + len(mark)
    place = len(data)
    while place > half and data[place - 1] & 0xC0 == 0x80:
        place -= 1
    return place - 1 if data[place - 1] >= 0xC0 else len(data)


def _decoded(data: bytes, file: Path, begin: int = 0, cut: bool = False) -> str:
    """The bytes as text; `cut`: they may end inside a character."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3:
            return data[: error.start].decode()
        raise UsageError(
            f"{file}, byte {begin + error.start}: not UTF-8; convert it "
            f"(iconv -f latin1 -t utf-8), or leave it out"
        ) from error


def _open_parquet(file: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingError(f"{file} is read by the libraries of the extra `data`; {INSTALL}") from (
            error
        )
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{file} is no Parquet file that can be read ({reason})") from error


def _parquet_column(opened: Any, file: Path) -> str:
    names = list(opened.schema_arrow.names)
    return text_column(names, None, str(file))


def text_column(names: Sequence[str], wanted: str | None, where: str) -> str:
    """The column to learn from; UsageError where there is none, with those that there are."""
    found = [name for name in ((wanted,) if wanted else ("messages", "text")) if name in names]
    if not found:
        lacks = f"column {wanted}" if wanted else "column `messages` or `text`"
        raise UsageError(
            f"{where} has no {lacks}, only {', '.join(names)}; name one: hf:DATASET:SPLIT:COLUMN"
        )
    return found[0]


def _parquet_rows(file: Path, group: int, skip: int, warn: Warn) -> Iterator[Example | None]:
    opened = _open_parquet(file)
    column = _parquet_column(opened, file)
    extra = [n for n in OPTIONAL if n in opened.schema_arrow.names]
    row = 0
    for batch in opened.iter_batches(64, row_groups=[group], columns=[column, *extra]):
        if row + len(batch) <= skip:
            row += len(batch)
            continue
        for values in batch.to_pylist():
            row += 1
            if row > skip:
                yield example_or_warning(
                    values, column, f"{file}, row {row} of group {group}", warn
                )


def example_or_warning(
    values: dict[str, Any], column: str, where: str, warn: Warn
) -> Example | None:
    """A row as an example; None, and a warning, where it is none."""
    try:
        return example_of(values, column)
    except ValueError as error:
        warn(f"{where}: {' '.join(str(error).split())}")
        return None
