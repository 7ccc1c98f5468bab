"""Owns the Models screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from gladius_tui.app.screen import GladiusScreen


class ModelsScreen(GladiusScreen):
    """Models."""

    MODE = "models"

    def compose_body(self) -> ComposeResult:
        yield Static("", id="empty")

    def command_line(self) -> list[str]:
        return ["models"]
