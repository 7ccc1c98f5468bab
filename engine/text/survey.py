"""Read a run's text before it starts, to know how much of it can be learnt.

Small text is read completely; of large text a sample is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec

from engine.errors import UsageError
from engine.events import REPEATED, TextsRead
from engine.text.examples import Example, LeftOut
from engine.text.files import format_of
from engine.text.forms import passages
from engine.text.keys import example_key
from engine.text.pieces import FilePieces
from engine.text.sources import open_files, read_items, source_files
from engine.text.tally import TextTally

_SAMPLED_PIECES, _SAMPLED_ITEMS = 8, 2000
"""Pieces of large text that are sampled, and items of each, at most."""
_MAX_SAMPLED_LIST = 64 << 20
"""A larger JSON list is not sampled: it can only be read as a whole."""


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What the text of a run has."""

    table: TextsRead
    """Before it is encoded: learnt means readable and not repeated."""
    bytes: float
    """Of the text that can be learnt, about."""
    is_sample: bool = False


def text_bytes(example: Example) -> int:
    """Bytes of the example's text, tool calls left aside."""
    if example.messages is None:
        return len((example.text or "").encode())
    return sum(
        len(message.content.encode()) + len((message.reasoning_content or "").encode())
        for message in example.messages
    )


def survey(sources: Sequence[str], *, is_large: bool) -> Survey:
    """The survey of files and folders; read again only if a file has changed.

    Raises UsageError where there is no text at all.
    """
    files = [file for source in sources for file in source_files(source)]
    stats = [file.stat() for file in files]
    stamp = tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats)
    return _survey(tuple(sources), is_large, stamp)


@functools.lru_cache(maxsize=16)
def _survey(sources: tuple[str, ...], is_large: bool, _stamp: object) -> Survey:
    text = open_files(sources)
    return _sample(text, sources) if is_large else _read(text)


def _read(text: FilePieces) -> Survey:
    tally, counts = TextTally(), Repetitions()
    size = 0
    for item in read_items(text):
        if isinstance(item, LeftOut):
            tally.leave_out(item)
            continue
        for example in passages(item):
            if counts.is_repeated(example):
                tally.add(example, "left_out", REPEATED)
            else:
                tally.add(example, "learnt")
                size += text_bytes(example)
    table = tally.table()
    if not table.texts and not any(r.reason == "broken file" for r in table.reasons):
        raise UsageError(f"{text.title} is empty; write at least one example into it")
    return Survey(table=table, bytes=size)


class Repetitions:
    """Finds texts that have come before, for the same experts."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str | None, str | None]] = set()

    def is_repeated(self, example: Example) -> bool:
        """Whether the same text has come before; remembers it."""
        key = example_key(example), example.expert, example.capability
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


def _sample(text: FilePieces, sources: Sequence[str]) -> Survey:
    """A few items of pieces all over the text."""
    tally = TextTally()
    for left in text.files_left_out:
        tally.leave_out(left)
    large_lists = {
        str(file)
        for source in sources
        for file in source_files(source)
        if format_of(Path(file)) == "json" and file.stat().st_size > _MAX_SAMPLED_LIST
    }
    count = min(text.pieces, _SAMPLED_PIECES)
    for piece in sorted({n * text.pieces // count for n in range(count)}):
        if text.reads_list(piece, large_lists):
            continue
        for _, item in islice(text.read(piece, 0, 0), _SAMPLED_ITEMS):
            if isinstance(item, LeftOut):
                tally.leave_out(item)
            else:
                tally.add(item, "learnt")
    table = tally.table()
    share = table.learnt / table.texts if table.texts else 1.0
    return Survey(table=table, bytes=text.size * share, is_sample=True)
