"""Write lines to a terminal, a pipe or a file: colour, line width, broken pipes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import IO

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_DEFAULT_WIDTH = 100


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


def printable(text: str) -> str:
    """The text with spaces for control characters, which a terminal would interpret."""
    return "".join(c if c.isprintable() else " " for c in text)


def print_lines(lines: Iterable[str], stream: IO[str] | None = None) -> bool:
    """Write the lines to `stream` (default: standard output); False if the stream is broken.

    A closed pipe or a full disk must not end a run: what is written there afterwards is dropped.
    """
    out: IO[str] = sys.stdout if stream is None else stream
    try:
        out.write("".join(f"{line}\n" for line in lines))
        out.flush()
        return True
    except (OSError, ValueError):
        _discard_output(out)
        return False


def _discard_output(stream: IO[str]) -> None:
    """Redirect the stream to /dev/null, so that Python's flush at exit does not fail again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
