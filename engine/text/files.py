"""Which files of a folder are text, in which format, and how each is opened as UTF-8."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from engine.text.examples import LeftOut

Format = Literal["lines", "plain", "parquet", "json"]

FORMATS: dict[str, Format] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".txt": "plain",
    ".md": "plain",
    ".parquet": "parquet",
}
"""Formats by suffix, in any case; all but Parquet may be compressed (`.jsonl.gz`)."""
GZIP = ".gz"
SUFFIXES = (*FORMATS, *(suffix + GZIP for suffix in FORMATS if suffix != ".parquet"))

MAX_WHOLE_BYTES = 1 << 30
"""A JSON list, or a compressed or UTF-16 document, is read as a whole, up to this size."""
_CARDS = (
    *("license", "licence", "copying", "notice", "citation", "contributing", "code_of_conduct"),
)
"""Names, without suffix, of documents about a data set; so is any that begins with `readme`."""
_SETTINGS = (
    *("dataset_info", "dataset_infos", "dataset_dict", "state", "croissant", "config"),
    *("generation_config", "tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens"),
    *("vocab", "package", "package-lock"),
)
"""Names of `.json` files that describe a data set or a model."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks; UTF-32's begins with UTF-16's, so it comes first."""


class BrokenFile(ValueError):
    """A file that can't be read any further: its compression, encoding or format is damaged."""


def format_of(file: Path) -> Format | None:
    """The format that the file's name says; None for another."""
    name = file.name.lower()
    suffix = Path(name.removesuffix(GZIP)).suffix
    found = FORMATS.get(suffix)
    return None if found == "parquet" and name.endswith(GZIP) else found


def is_compressed(file: Path) -> bool:
    return file.name.lower().endswith(GZIP)


def is_card(file: Path) -> bool:
    """Whether the name is that of a data set's card or of a file that describes it."""
    name = file.name.lower().partition(".")[0]
    if format_of(file) == "json":
        return name in _SETTINGS
    return format_of(file) == "plain" and (name in _CARDS or name.startswith("readme"))


def folder_files(folder: Path) -> tuple[list[Path], list[LeftOut]]:
    """The text files below a folder, sorted by name, and the other files; hidden ones are
    skipped."""
    found: list[Path] = []
    others: list[LeftOut] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(where, name)
            if name.startswith("."):
                continue
            if format_of(file) is None:
                others.append(_not_read(file, "format that is not read"))
            elif is_card(file):
                others.append(_not_read(file, "card or settings of a data set"))
            else:
                found.append(file)
    return sorted(found), sorted(others, key=lambda left: left.where)


def _not_read(file: Path, reason: str) -> LeftOut:
    return LeftOut(reason=reason, where=str(file), is_file=True)


def text_bytes(file: Path) -> int:
    """Bytes of the file's text: of a compressed file, as its last four bytes say."""
    size = file.stat().st_size
    if not is_compressed(file) or size < 4:
        return size
    with open(file, "rb") as opened:
        opened.seek(-4, os.SEEK_END)
        # The length modulo 4 GiB. In a file that was cut off these bytes are anything.
        return min(max(int.from_bytes(opened.read(4), "little"), size), 100 * size)


def encoding_of(start: bytes) -> str:
    """The encoding that a byte-order mark names; utf-8 without one."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")


def is_whole(file: Path) -> bool:
    """Whether the file can only be read from its beginning: it is compressed, UTF-16, or a list of
    JSON."""
    if is_compressed(file):
        return True
    with open(file, "rb") as opened:
        if encoding_of(opened.read(4)) != "utf-8":
            return True
    return format_of(file) == "json" and not is_json_lines(file)


def is_json_lines(file: Path) -> bool:
    """Whether the first line of a `.json` file is an object of its own, and others follow."""
    with open(file, "rb") as opened:
        first = opened.readline(MAX_WHOLE_BYTES).removeprefix(codecs.BOM_UTF8)
        if not first.lstrip().startswith(b"{") or not opened.read(1):
            return False
    try:
        msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return False
    return True


def open_text(file: Path) -> BinaryIO:
    """The file as UTF-8, decompressed; JSON Lines that are compressed are read as they are needed.

    Raises BrokenFile, OSError.
    """
    if is_compressed(file):
        opened: BinaryIO = gzip.open(file, "rb")  # type: ignore[assignment]  # noqa: SIM115 (as below)
        if format_of(file) == "lines" and encoding_of(peek(opened, file)) == "utf-8":
            return opened
        with opened:
            data = _read_all(opened, file)
    else:
        plain = open(file, "rb")  # noqa: SIM115 (returned to the caller, who closes it)
        if encoding_of(plain.read(4)) == "utf-8":
            plain.seek(0)
            return plain
        with plain:
            plain.seek(0)
            data = _read_all(plain, file)
    encoding = encoding_of(data)
    if encoding != "utf-8":
        try:
            data = data.decode(encoding).encode()
        except ValueError as error:
            raise BrokenFile(f"not {encoding.upper()} ({str(error)[:120]})") from None
    return io.BytesIO(data)


def peek(opened: BinaryIO, file: Path) -> bytes:
    """The first bytes of a compressed file; it is then at its beginning again."""
    try:
        start = opened.read(4)
        opened.seek(0)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenFile(f"damaged compression ({error})") from None
    return start


def _read_all(opened: BinaryIO, file: Path) -> bytes:
    try:
        data = opened.read(MAX_WHOLE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenFile(f"damaged compression ({error})") from None
    if len(data) > MAX_WHOLE_BYTES:
        raise BrokenFile(
            f"longer than {MAX_WHOLE_BYTES >> 30} GiB; write it as JSON Lines, or split it"
        )
    return data
