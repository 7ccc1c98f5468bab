"""Write lines to a terminal, a pipe or a file: colour, line width, foreign text, broken pipes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from typing import IO

from engine.foreign_text import LINES, UNENCODABLE, shown

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_DEFAULT_WIDTH = 100
_PAINT = re.compile(f"(\x1b\\[(?:0|{'|'.join(_STYLES.values())})m)")
"""The sequences that `paint` writes."""


def use_colour(stream: IO[str]) -> bool:
    """Whether to write colours: to a terminal, unless NO_COLOR or TERM=dumb is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def line_width(stream: IO[str]) -> int:
    """The terminal's width in columns; 100 where the stream is none."""
    if stream.isatty():
        with contextlib.suppress(OSError):
            return os.get_terminal_size(stream.fileno()).columns
    return _DEFAULT_WIDTH


def paint(text: str, style: str, colour: bool) -> str:
    """The text in a style (bold, dim, red, green, yellow, cyan; "" for none) if `colour`."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if colour and style else text


def print_lines(
    lines: Iterable[str], stream: IO[str] | None = None, *, painted: bool = False
) -> bool:
    """Write the lines to `stream` (default: standard output); False if the stream is broken.

    What is not printable is written as an escape, and so is what the stream's encoding lacks. With
    `painted` the colours of `paint` stay: foreign text in such lines must have gone through
    `shown` before. A closed pipe or a full disk must not end a run: what is written there
    afterwards is dropped.
    """
    out: IO[str] = sys.stdout if stream is None else stream
    text = "".join(f"{_safe(line, painted)}\n" for line in lines)
    encoding = getattr(out, "encoding", None) or "utf-8"
    text = text.encode(encoding, UNENCODABLE).decode(encoding)
    try:
        out.write(text)
        out.flush()
        return True
    except (OSError, ValueError):  # ValueError: the stream was closed
        _discard_output(out)
        return False


def _safe(line: str, painted: bool) -> str:
    if not painted:
        return shown(line, keep=LINES)
    parts = _PAINT.split(line)  # the odd ones are colours
    return "".join(part if n % 2 else shown(part, keep=LINES) for n, part in enumerate(parts))


def _discard_output(stream: IO[str]) -> None:
    """Redirect the stream to /dev/null, so that Python's flush at exit does not fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
