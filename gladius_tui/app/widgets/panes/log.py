"""The Log pane: the run's log, which can be scrolled and searched."""

from __future__ import annotations

import time
from typing import ClassVar

from textual.content import Content

from engine.run.view import LogEntry, RunView
from gladius_tui.app.widgets.pane import Pane, PaneSpec
from gladius_tui.app.widgets.panes.text import MUTED, printable

_STYLES = {"info": "", "good": "$text-success", "warning": "$text-warning", "error": "$text-error"}
_SIGNS = {"info": "", "good": "", "warning": "! ", "error": "✗ "}
_UNSEEN = Content("")
_TIME = 9
"""Columns of the time of day."""


class LogPane(Pane):
    """The log; its newest lines are shown until it is scrolled."""

    FOLLOWS: ClassVar[bool] = True

    def __init__(self, spec: PaneSpec) -> None:
        super().__init__(spec)
        self.search = ""
        """Only lines that contain this text, in lower case, are shown."""
        self.whole = False
        """Whether long lines are shown whole."""
        self.matches = 0
        """Number of lines that contain the text that is searched for."""

    def show(self, run: RunView | None, now: float) -> None:
        super().show(run, now)
        text = f"Log · “{self.search}” {self.matches}" if self.search else "Log"
        title = Content(text).markup  # a title is markup: brackets that were typed are escaped
        if title != self.border_title:
            self.border_title = title

    def lines(self, run: RunView, now: float) -> list[Content]:
        entries = list(run.log)
        if self.search:
            entries = [entry for entry in entries if self.search in entry.text.lower()]
        self.matches = len(entries)
        if not entries:
            text = f"no matches for “{self.search}”" if self.search else "nothing logged yet"
            return [Content.styled(text, MUTED)]
        if self.whole:
            return [
                line
                for entry in entries
                for line in entry_lines(entry, self.size.width, self.search, whole=True)
            ]
        # A line each: only those in sight are made.
        height = self.size.height
        top = min(self.scrolled, max(0, len(entries) - height))
        lines = [_UNSEEN] * len(entries)
        for n, entry in enumerate(entries[top : top + height], top):
            lines[n : n + 1] = entry_lines(entry, self.size.width, self.search)
        return lines


def entry_lines(
    entry: LogEntry, width: int, search: str = "", *, whole: bool = False
) -> list[Content]:
    """A line of the log in `width` cells: cut, or with `whole` as many lines as it takes. The text
    that is searched for is marked."""
    room = max(width - _TIME, 8)
    text = Content.styled(printable(_SIGNS[entry.level] + entry.text), _STYLES[entry.level])
    if search:
        plain = text.plain.lower()
        start = plain.find(search)
        while start >= 0 and len(plain) == len(text.plain):
            text = text.stylize("reverse", start, start + len(search))
            start = plain.find(search, start + len(search))
    if text.cell_length > room:
        lines = text.wrap(room) if whole else [text.truncate(room, ellipsis=True)]
    else:
        lines = [text]
    when = time.strftime("%H:%M:%S ", time.localtime(entry.time))
    margins = [Content.styled(when, MUTED), *[Content(" " * _TIME)] * (len(lines) - 1)]
    return [Content.assemble(a, b) for a, b in zip(margins, lines, strict=True)]
