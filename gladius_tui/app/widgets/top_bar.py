"""The first line of every screen: the six modes, and what runs."""

from __future__ import annotations

from textual.content import Content

from gladius_tui.app.model.job_status import jobs_content
from gladius_tui.app.model.modes import MODES
from gladius_tui.app.services import services
from gladius_tui.app.widgets.clickable_line import ClickableLine

_TITLES_WIDTH = 100
"""Columns from which on the titles of all modes have room."""


class TopBar(ClickableLine):
    """` GLADIUS   1 Models ... [4 Dashboard] ...   ● training  step 12,480  61%`."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def render(self) -> Content:
        app = services(self)
        width = self.size.width
        self.targets.clear()
        line = Content.styled(" GLADIUS  ", "bold $text-accent")
        for mode in MODES:
            text = f"{mode.key} {mode.title}" if width >= _TITLES_WIDTH else mode.key
            if mode.name == self._mode:
                line = line.append(Content.styled(f"[{mode.key} {mode.title}]", "bold"))
            else:
                part = Content.styled(f" {text} ", "$foreground 75%")
                line = self.add_target(line, part, f"app.mode('{mode.name}')")
        room = width - line.cell_length - 3
        jobs = jobs_content(app.watcher.jobs, app.state, room)
        gap = max(2, width - line.cell_length - jobs.cell_length - 1)
        return line.append(" " * gap).append(jobs).append(" ")
