"""Owns the Train screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from gladius_tui.app.screen import GladiusScreen


class TrainScreen(GladiusScreen):
    """Train."""

    MODE = "train"

    def compose_body(self) -> ComposeResult:
        yield Static("", id="empty")

    def command_line(self) -> list[str]:
        return ["train"]
