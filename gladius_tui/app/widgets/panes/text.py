"""Helpers that the texts of the Dashboard's panes share."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.foreign_text import shown

MUTED = "$foreground 60%"
STRONG = "bold"

Part = str | tuple[str, str] | Content
"""A piece of a line: text, (text, style), or styled text."""
Line = Content | str | Sequence[Part]


def join_lines(lines: Sequence[Line]) -> Content:
    """The lines as one text."""
    made = []
    for line in lines:
        if isinstance(line, str):
            made.append(Content(line))
        elif isinstance(line, Content):
            made.append(line)
        else:
            made.append(Content.assemble(*line))
    return Content("\n").join(made)


def left_right(left: Sequence[Part], right: Sequence[Part], width: int) -> Content:
    """Both on one line, the right one at its end; it is left out if there is no room for it."""
    a, b = Content.assemble(*left), Content.assemble(*right)
    room = width - a.cell_length - b.cell_length
    return Content.assemble(a, " " * room, b) if room > 0 else a


def progress_bar(fraction: float | None, width: int, suffix: str = "") -> Content:
    """A bar of `width` cells; empty if the fraction is not known."""
    width = max(width, 4)
    full = round(min(max(fraction or 0.0, 0.0), 1.0) * width)
    return Content.assemble(
        ("▇" * full, "$accent"), ("▁" * (width - full), MUTED), f" {suffix}" if suffix else ""
    )


def printable(text: str) -> str:
    """The text with escapes for control characters: an untrained student writes them too."""
    return shown(text, keep="\n")
