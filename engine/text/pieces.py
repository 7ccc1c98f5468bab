"""Cut text files into pieces that can be read in any order and resumed from any position.

A piece is about 1 MiB of JSON Lines or plain text, several small files, or one row group of
Parquet. `distill.data.streams` decides the order of the pieces.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine.errors import GladiusError, UsageError
from engine.text.examples import Example, decode_example
from engine.text.parquet import Warn, open_parquet, parquet_rows

PIECE_BYTES = 1 << 20
"""Bytes of a piece, about; smaller files share one."""
PASSAGE_BYTES = 1 << 15
"""A longer plain-text file is read in passages of at most this size, all but its last marked as
cut (`Example.complete` is False)."""

LINES, PLAIN, PARQUET = (".jsonl",), (".txt", ".md"), (".parquet",)
SUFFIXES = (*LINES, *PLAIN, *PARQUET)


class TextPieces(Protocol):
    """Text cut into pieces. A position inside a piece is (part, examples of that part read)."""

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

    def read(
        self, piece: int, part: int, passed: int, warn: Warn
    ) -> Iterator[tuple[int, Example | None]]:
        """(part, example) from a position on; None for an example that cannot be read.

        `warn` receives one message for each of those, with file and line.
        """
        ...


@dataclass(frozen=True)
class _Segment:
    """A range of a file: `start` to `stop` in bytes, or in row groups of Parquet."""

    file: Path
    start: int
    stop: int


class FilePieces:
    """Text of JSON Lines, plain text and Parquet files.

    Files are opened when a piece is read; only the footers of Parquet files are read before.
    """

    def __init__(
        self, files: Sequence[Path], title: str = "", original: Callable[[Path], str] = str
    ) -> None:
        """original: the path of a file in the fingerprint; a moved root has its former paths."""
        self.title = title or (str(files[0]) if len(files) == 1 else f"{len(files)} files")
        self.size = 0
        digest = hashlib.sha256()
        self._pieces: list[list[_Segment]] = []
        space = 0  # bytes left in the last piece for further small files
        for file in files:
            size = file.stat().st_size
            self.size += size
            digest.update(f"{original(file)}\0{size}\n".encode())
            if file.suffix in PARQUET:
                groups = open_parquet(file).metadata.num_row_groups
                self._pieces += [[_Segment(file, n, n + 1)] for n in range(groups)]
                space = 0
            elif size <= space:
                self._pieces[-1].append(_Segment(file, 0, size))
                space -= size
            else:
                starts = range(0, size, PIECE_BYTES)
                self._pieces += [[_Segment(file, s, min(s + PIECE_BYTES, size))] for s in starts]
                space = -size % PIECE_BYTES if size < PIECE_BYTES else 0
        self.fingerprint = digest.hexdigest()

    @property
    def pieces(self) -> int:
        return len(self._pieces)

    def read(
        self, piece: int, part: int, passed: int, warn: Warn
    ) -> Iterator[tuple[int, Example | None]]:
        """See `TextPieces.read`."""
        for number, segment in enumerate(self._pieces[piece]):
            if number < part:
                continue
            skip = passed if number == part else 0
            for count, example in enumerate(_read_segment(segment, skip, warn)):
                if segment.file.suffix in PARQUET or count >= skip:
                    yield number, example


def _read_segment(segment: _Segment, skip: int, warn: Warn) -> Iterator[Example | None]:
    """The examples of a segment. Only Parquet skips the first `skip`; the caller skips others."""
    try:
        if segment.file.suffix in PARQUET:
            yield from parquet_rows(segment.file, segment.start, skip, warn)
        elif segment.file.suffix in PLAIN:
            yield from _passages(segment, warn)
        else:
            yield from _lines(segment, warn)
    except OSError as error:
        raise GladiusError(
            f"{segment.file}: {error.strerror or error}; restore the file, then resume"
        ) from error


def _lines(segment: _Segment, warn: Warn) -> Iterator[Example | None]:
    """The examples of the JSON lines that begin in the segment."""
    with open(segment.file, "rb") as file:
        at = segment.start
        if at:
            # A line that begins before this segment belongs to the previous one.
            file.seek(at - 1)
            at += len(file.readline()) - 1
        while at < segment.stop and (line := file.readline()):
            begin, at = at, at + len(line)
            line = line.removeprefix(b"\xef\xbb\xbf") if begin == 0 else line
            if not line.strip():
                continue
            try:
                yield decode_example(line)
            except ValueError as error:
                number = _line_number(segment.file, begin)
                warn(f"{segment.file}, line {number}: {' '.join(str(error).split())}")
                yield None


def _line_number(path: Path, offset: int) -> int:
    """The number, from 1, of the line that begins at byte `offset`."""
    count = 1
    with open(path, "rb") as file:
        while offset > 0 and (data := file.read(min(offset, PIECE_BYTES))):
            count += data.count(b"\n")
            offset -= len(data)
    return count


def _passages(segment: _Segment, warn: Warn) -> Iterator[Example | None]:
    """A text file as one document, or as passages of at most PASSAGE_BYTES cut at white space."""
    with open(segment.file, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        at, stop = (_boundary(file, offset, size) for offset in (segment.start, segment.stop))
        while at < stop:
            file.seek(at)
            data = file.read(min(PASSAGE_BYTES, stop - at))
            if at + len(data) < stop:
                data = data[: _passage_end(data)]
            begin, at = at, at + len(data)
            data = data.removeprefix(b"\xef\xbb\xbf") if begin == 0 else data
            try:
                text = decode_text(data, segment.file, begin).strip("\n")
            except UsageError as error:
                warn(str(error))
                yield None
                continue
            if text.strip():
                yield Example(text=text, complete=at >= size)


def _boundary(file: Any, offset: int, size: int) -> int:
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


def _passage_end(data: bytes) -> int:
    """The length of a passage that continues: up to a blank line, line, word or character end."""
    half = len(data) // 2
    for mark in (b"\n\n", b"\n", b" "):
        if (found := data.rfind(mark, half)) >= 0:
            return found + len(mark)
    end = len(data)
    while end > half and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 else len(data)


def decode_text(data: bytes, file: Path, begin: int = 0, cut: bool = False) -> str:
    """UTF-8 bytes as text. `begin` is their offset in the file, for the message of the UsageError;
    with `cut`, an incomplete last character is dropped."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if cut and error.start >= len(data) - 3:
            return data[: error.start].decode()
        raise UsageError(
            f"{file}, byte {begin + error.start}: not UTF-8; convert it "
            "(iconv -f latin1 -t utf-8) or leave it out"
        ) from error
