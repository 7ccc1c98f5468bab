"""Owns the Download screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from gladius_tui.app.screen import GladiusScreen


class DownloadScreen(GladiusScreen):
    """Download."""

    MODE = "download"

    def compose_body(self) -> ComposeResult:
        yield Static("", id="empty")

    def command_line(self) -> list[str]:
        return ["download"]
