"""Cut text files into pieces that can be read in any order and resumed from any position.

A piece is about 1 MiB of JSON Lines or plain text, several small files, one row group of Parquet,
or a whole file that can only be read from its beginning (compressed, UTF-16, a list of JSON).
`distill.data.streams` decides the order of the pieces.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from gzip import BadGzipFile
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.errors import GladiusError, UsageError
from engine.text.examples import Example, LeftOut
from engine.text.files import BrokenFile, format_of, is_whole, open_text, text_bytes
from engine.text.forms import PASSAGE_BYTES, passage_end, passages, read_line
from engine.text.jsonfiles import json_rows
from engine.text.parquet import check_columns, open_parquet, parquet_rows
from engine.text.turns import Unreadable

PIECE_BYTES = 1 << 20
"""Bytes of a piece, about; smaller files share one."""
BROKEN = "broken file"
"""Reason of a file that can't be read, or not to its end."""
NOT_UTF8 = "not UTF-8"

_BOM = b"\xef\xbb\xbf"

Item = Example | LeftOut
"""A text, or why one is not learnt."""


class TextPieces(Protocol):
    """Text cut into pieces. A position inside a piece is (part, items of that part read)."""

    @property
    def title(self) -> str: ...
    @property
    def pieces(self) -> int:
        """Number of pieces."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes; None if unknown."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the pieces: a saved position is valid only for the same fingerprint."""
        ...

    @property
    def files_left_out(self) -> Sequence[LeftOut]:
        """Files that are not read, or of which none can be."""
        ...

    def read(self, piece: int, part: int, passed: int) -> Iterator[tuple[int, Item]]:
        """(part, item) from a position on."""
        ...


@dataclass(frozen=True)
class _Segment:
    """A range of a file: `start` to `stop` in bytes, or in row groups of Parquet.

    `stop` is None where the whole file is read.
    """

    file: Path
    start: int
    stop: int | None


class FilePieces:
    """Text of files, in all formats of `engine.text.files`.

    Files are opened when a piece is read; before, only the footers of Parquet files and the
    beginnings of large files are.
    """

    def __init__(
        self,
        files: Sequence[Path],
        title: str = "",
        left_out: Sequence[LeftOut] = (),
        original: Callable[[Path], str] = str,
    ) -> None:
        """
        Args:
            left_out: files beside them that are not read.
            original: the path of a file in the fingerprint; a moved root has its former paths.

        Raises MissingError where pyarrow is missing.
        """
        self.title = title or (str(files[0]) if len(files) == 1 else f"{len(files)} files")
        self.size = 0
        self.files_left_out = list(left_out)
        digest = hashlib.sha256()
        self._pieces: list[list[_Segment]] = []
        space = 0  # bytes left in the last piece for further small files
        for file in files:
            size = text_bytes(file)
            self.size += size
            record = f"{original(file)}\0{file.stat().st_size}\n"
            digest.update(record.encode(errors="surrogateescape"))
            if not size:
                left = LeftOut(reason="empty file", where=str(file), is_file=True)
                self.files_left_out.append(left)
            elif format_of(file) == "parquet":
                self._pieces += [[segment] for segment in self._row_groups(file)]
                space = 0
            elif size <= space:
                self._pieces[-1].append(_Segment(file, 0, None))
                space -= size
            else:
                segments = _segments(file, size)
                self._pieces += [[segment] for segment in segments]
                space = -size % PIECE_BYTES if size < PIECE_BYTES else 0
        self.fingerprint = digest.hexdigest()

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    def reads_list(self, piece: int, files: Collection[str]) -> bool:
        """Whether the piece is one of these files, read as a whole."""
        return any(s.stop is None and str(s.file) in files for s in self._pieces[piece])

    def read(self, piece: int, part: int, passed: int) -> Iterator[tuple[int, Item]]:
        """See `TextPieces.read`."""
        for number, segment in enumerate(self._pieces[piece]):
            if number < part:
                continue
            skip = passed if number == part else 0
            if format_of(segment.file) == "parquet":
                items = _row_items(segment, skip)
            else:
                items = islice(_items(segment), skip, None)
            for item in items:
                yield number, item

    def _row_groups(self, file: Path) -> list[_Segment]:
        try:
            opened = open_parquet(file)
            check_columns(opened, file)
        except UsageError as error:
            self.files_left_out.append(_broken(file, str(error).removeprefix(f"{file} ")))
            return []
        return [_Segment(file, n, n + 1) for n in range(opened.metadata.num_row_groups)]


def _segments(file: Path, size: int) -> list[_Segment]:
    if size <= PIECE_BYTES or is_whole(file):
        return [_Segment(file, 0, None)]
    starts = range(0, size, PIECE_BYTES)
    return [_Segment(file, start, min(start + PIECE_BYTES, size)) for start in starts]


def _broken(file: Path, detail: str) -> LeftOut:
    return LeftOut(reason=BROKEN, where=str(file), detail=detail, is_file=True)


def _row_items(segment: _Segment, skip: int) -> Iterator[Item]:
    try:
        yield from parquet_rows(segment.file, segment.start, skip)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _gone(segment.file, error) from error
        # pyarrow's errors for damaged data
        yield _broken(segment.file, f"damaged ({' '.join(str(error).split())[:120]})")


def _gone(file: Path, error: OSError) -> GladiusError:
    return GladiusError(f"{file}: {error.strerror or error}; restore the file, then resume")


def _items(segment: _Segment) -> Iterator[Item]:
    """The items of a segment; what can't be read any further ends it with one for the file."""
    file = segment.file
    try:
        if segment.stop is None:
            opened = open_text(file)
        else:
            opened = open(file, "rb")  # noqa: SIM115 (closed below)
        found = False
        with opened:
            for item in _items_of(segment, opened):
                found = True
                yield item
        if not found and segment.stop is None:
            yield LeftOut(reason="empty file", where=str(file), is_file=True)
    except BrokenFile as error:
        yield _broken(file, str(error))
    except (EOFError, zlib.error, BadGzipFile) as error:
        yield _broken(file, f"damaged compression ({error})")
    except OSError as error:
        raise _gone(file, error) from error


def _items_of(segment: _Segment, opened: BinaryIO) -> Iterator[Item]:
    file, start, stop = segment.file, segment.start, segment.stop
    if format_of(file) == "plain":
        yield from _documents(file, opened, start, stop)
    elif format_of(file) == "json" and stop is None:
        yield from _rows(file, json_rows(opened.read()))
    elif start:
        yield from _later_lines(file, opened, start, stop)
    else:
        yield from _rows(file, _first_lines(opened, stop))


def _rows(file: Path, rows: Iterator[tuple[int, bytes]]) -> Iterator[Item]:
    """The items of (line number, JSON)."""
    for number, row in rows:
        yield from _row(row, f"{file}, line {number}")


def _row(row: bytes, where: str) -> Iterator[Item]:
    try:
        example = read_line(row, where)
    except Unreadable as error:
        yield LeftOut(reason=error.reason, where=where, detail=error.detail)
        return
    yield from passages(example)


def _first_lines(opened: BinaryIO, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(number, line) of the lines that begin before `stop`; blank lines are skipped."""
    at = 0
    for number, line in enumerate(opened, start=1):
        if stop is not None and at >= stop:
            return
        at += len(line)
        # Some editors write a byte-order mark at the start.
        line = line.removeprefix(_BOM) if number == 1 else line
        if line and not line.isspace():
            yield number, line


def _later_lines(file: Path, opened: BinaryIO, start: int, stop: int | None) -> Iterator[Item]:
    """The items of the lines that begin in the segment. `located` finds their numbers."""
    # A line that begins before this segment belongs to the previous one.
    opened.seek(start - 1)
    rest = opened.readline(-1 if stop is None else stop - start + 1)
    if not rest.endswith(b"\n"):
        return  # it fills the whole segment
    at = start - 1 + len(rest)
    while (stop is None or at < stop) and (line := opened.readline()):
        begin, at = at, at + len(line)
        if not line.isspace():
            yield from _row(line, f"{file}, byte {begin}")


def located(where: str) -> str:
    """`FILE, byte N` as `FILE, line N`; anything else as it is. Reads the file up to there."""
    found = re.fullmatch(r"(.*), byte (\d+)", where, re.DOTALL)
    if found is None:
        return where
    with suppress(OSError):
        return f"{found[1]}, line {_line_number(Path(found[1]), int(found[2]))}"
    return where


def _line_number(path: Path, offset: int) -> int:
    """The number, from 1, of the line that begins at byte `offset`."""
    count = 1
    with open(path, "rb") as file:
        while offset > 0 and (data := file.read(min(offset, PIECE_BYTES))):
            count += data.count(b"\n")
            offset -= len(data)
    return count


def _documents(file: Path, opened: BinaryIO, start: int, stop: int | None) -> Iterator[Item]:
    """A text file as one document, or as passages of at most PASSAGE_BYTES cut at white space."""
    size = opened.seek(0, 2)
    at = _boundary(opened, start, size)
    stop = _boundary(opened, size if stop is None else stop, size)
    while at < stop:
        opened.seek(at)
        data = opened.read(min(PASSAGE_BYTES, stop - at))
        if at + len(data) < stop:
            data = data[: passage_end(data)]
        begin, at = at, at + len(data)
        item = _document(file, data, begin, is_last=at >= size)
        if item is not None:
            yield item


def _document(file: Path, data: bytes, begin: int, is_last: bool) -> Item | None:
    """One passage, which begins at byte `begin`; None where it is empty."""
    data = data.removeprefix(_BOM) if begin == 0 else data
    reason = detail = ""
    text = ""
    try:
        text = data.decode().strip("\n")
    except UnicodeDecodeError as error:
        reason = NOT_UTF8
        detail = (
            f"byte {begin + error.start}: not UTF-8; convert it (iconv -f latin1 -t utf-8) or "
            "leave it out"
        )
    if "\0" in text:
        reason = "binary data"
        detail = f"byte {begin + data.find(0)}: NUL; binary, or UTF-16 without a byte-order mark"
    passage = int(begin > 0)
    if reason:
        return LeftOut(
            reason=reason, where=str(file), detail=detail, passage=passage, complete=is_last
        )
    if not text or text.isspace():
        return None
    return Example(text=text, complete=is_last, where=str(file), passage=passage)


def _boundary(file: BinaryIO, offset: int, size: int) -> int:
    """The first byte at or after `offset` where a passage may begin."""
    if offset <= 0 or offset >= size:
        return min(max(offset, 0), size)
    file.seek(offset - 1)
    data = file.read(PASSAGE_BYTES)
    for mark in (b"\n", b" "):
        if (found := data.find(mark)) >= 0:
            return offset + found
    index = 1
    while index < len(data) and data[index] & 0xC0 == 0x80:  # inside a character
        index += 1
    return offset - 1 + index
