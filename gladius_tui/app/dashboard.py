"""Owns the Dashboard: the training run, live or as the history tells it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from gladius_tui.app.screen import GladiusScreen


class DashboardScreen(GladiusScreen):
    """The training run."""

    MODE = "dashboard"

    def compose_body(self) -> ComposeResult:
        yield Static("No run yet. Press 3 to start one.", id="empty")

    def command_line(self) -> list[str]:
        return ["dashboard"]
