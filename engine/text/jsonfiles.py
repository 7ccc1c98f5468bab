"""Read the rows of a JSON file: a list of objects, one object, or JSON Lines under that name."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.text.files import BrokenFile
from engine.text.forms import has_form

_Rows = list[msgspec.Raw]


def json_rows(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number of the line where it begins, JSON) of each row; time and memory are linear.

    Raises BrokenFile.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    start = data.lstrip()[:1]
    if not start:
        return
    if start == b"[":
        yield from _located(data, _decode(data))
    elif start == b"{":
        yield from _object_rows(data)
    else:
        raise BrokenFile("not JSON: neither a list nor an object")


def _decode(data: bytes) -> _Rows:
    try:
        return msgspec.json.decode(data, type=_Rows)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"not JSON ({str(error)[:120]})") from None


def _object_rows(data: bytes) -> Iterator[tuple[int, bytes]]:
    """One row, the rows under its only key with a list, or the rows of JSON Lines."""
    try:
        values = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        lines = data.splitlines()
        if len(lines) < 2:
            raise BrokenFile(f"not JSON ({str(error)[:120]})") from None
        yield from ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
        return
    lists = [raw for raw in values.values() if bytes(raw).startswith(b"[")]
    if has_form(list(values)) or len(lists) != 1:
        yield 1, data
    else:
        yield from _located(data, _decode(bytes(lists[0])))


def _located(data: bytes, rows: _Rows) -> Iterator[tuple[int, bytes]]:
    """The rows with their lines; each is found where the last one ended."""
    at = counted = 0
    line = 1
    for raw in rows:
        row = bytes(raw)
        at = data.index(row, at)
        line += data.count(b"\n", counted, at)
        counted = at
        yield line, row
        at += len(row)
