"""The Log pane: the newest lines of the run's log."""

from __future__ import annotations

import time

from textual.content import Content

from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import MUTED, printable

_STYLES = {"info": "", "good": "$text-success", "warning": "$text-warning", "error": "$text-error"}
_SIGNS = {"info": "", "good": "", "warning": "! ", "error": "✗ "}
_TIME = 9
"""Columns of the time of day."""


def log_pane(run: RunView, width: int, height: int) -> Content:
    """The newest lines that fit, the last at the bottom."""
    entries = list(run.log)[-max(height, 1) :]
    if not entries:
        return Content.styled("nothing logged yet", MUTED)
    room = max(width - _TIME, 8)
    lines = []
    for entry in entries:
        when = time.strftime("%H:%M:%S", time.localtime(entry.time))
        text = printable(_SIGNS[entry.level] + entry.text)
        text = text if len(text) <= room else text[: room - 1] + "…"
        lines.append(Content.assemble((f"{when} ", MUTED), (text, _STYLES[entry.level])))
    return Content("\n").join(lines)
