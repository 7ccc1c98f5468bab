"""The last step before a line of the app reaches the terminal: it carries no control characters."""

from __future__ import annotations

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from engine.foreign_text import without_controls


class PrintableLines(LineFilter):
    """Removes what a terminal would interpret from every line of every widget.

    Text that is known to be from others is escaped where it is shown (`engine.foreign_text.shown`);
    this filter catches all the rest.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [
            segment if segment.control else Segment(without_controls(segment.text), segment.style)
            for segment in segments
        ]
