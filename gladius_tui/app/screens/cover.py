"""The screen that is painted first, before a mode's screen is imported."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.screen import Screen

from gladius_tui.app.widgets.top_bar import TopBar


class Cover(Screen[None]):
    """The top bar of the screen that comes next."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield TopBar(self._mode)
