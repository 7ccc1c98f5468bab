"""Owns the top line: the six modes, and what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from gladius_tui.app.modes import MODES

if TYPE_CHECKING:
    from gladius_tui.app.app import GladiusApp


class TopBar(Horizontal):
    """` GLADIUS   1 Models ... [4 Dashboard] ...   gladius_primary  ● training  pid 4127`."""

    DEFAULT_CSS = """
    TopBar {
        height: 1;
        background: $panel;
        #brand { width: auto; padding: 0 2 0 1; text-style: bold; color: $accent; }
        .mode { width: auto; padding: 0 1; color: $text-muted; }
        .mode:hover { color: $text; }
        .mode.-on { color: $text; text-style: bold; }
        #job { width: 1fr; text-align: right; padding: 0 1; }
    }
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield Static("GLADIUS", id="brand")
        for mode in MODES:
            on = mode.name == self._mode
            text = f"{mode.key} {mode.title}"
            classes = "mode -on" if on else "mode"
            yield Static(f"\\[{text}]" if on else text, classes=classes, id=f"to-{mode.name}")
        yield Static(id="job")

    def on_mount(self) -> None:
        self.show_jobs()

    def show_jobs(self) -> None:
        """Write what runs."""
        app = cast("GladiusApp", self.app)
        self.query_one("#job", Static).update(app.job_line())
