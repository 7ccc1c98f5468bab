"""A line about the last outcome: an error, a warning, or what was done."""

from __future__ import annotations

from typing import Literal

from textual.widgets import Static

from gladius_tui.app.model.texts import without_root
from gladius_tui.app.services import services

Tone = Literal["", "error", "warning", "done"]
_SIGNS = {"error": "✗ ", "warning": "! ", "done": "✓ ", "": ""}


class Notice(Static):
    """One line or a few; hidden while it is empty."""

    DEFAULT_CSS = """
    Notice {
        display: none; height: auto; max-height: 8; padding: 0 1;
        &.-on { display: block; }
        &.-error { color: $text-error; }
        &.-warning { color: $text-warning; }
        &.-done { color: $text-success; }
    }
    """

    def __init__(self, id: str = "notice") -> None:
        super().__init__(id=id, markup=False)
        self.text = ""

    def show(self, text: str, tone: Tone = "") -> None:
        """Show `text`; "" hides the line."""
        text = without_root(text, services(self).ws.root) if text else text
        self.text = text
        self.update(_SIGNS[tone] + text)
        for name in ("error", "warning", "done"):
            self.set_class(tone == name, f"-{name}")
        self.set_class(bool(text), "-on")

    def clear(self) -> None:
        """Hide the line."""
        self.show("")
