"""Owns the Validate screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from gladius_tui.app.screen import GladiusScreen


class ValidateScreen(GladiusScreen):
    """Validate."""

    MODE = "validate"

    def compose_body(self) -> ComposeResult:
        yield Static("", id="empty")

    def command_line(self) -> list[str]:
        return ["validate"]
