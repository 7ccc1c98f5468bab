"""A dialog with the output of a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.foreign_text import shown
from gladius_tui.app.dialogs.dialog import Dialog


class CommandOutput(Dialog[None]):
    """Runs `gladius_train ARGV` in a process of its own, and shows what it prints."""

    BINDINGS: ClassVar = [
        Binding("escape,q", "cancel", "Back", tooltip="Close", id="dialog.back"),
    ]

    def __init__(self, root: str, argv: Sequence[str]) -> None:
        super().__init__()
        self._root, self._argv = root, list(argv)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(shown(f"gladius_train {' '.join(self._argv)}"))
            dialog.border_subtitle = "↑↓ scroll · esc"
            with VerticalScroll():
                yield Static("…", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._run_command()

    @work(thread=True, exit_on_error=False)
    def _run_command(self) -> None:
        from gladius_tui.launch import printed

        text = printed(self._root, self._argv)
        self.app.call_from_thread(self._show, text)

    def _show(self, text: str) -> None:
        if self.is_mounted:
            self.query_one(Static).update(text or "(no output)")
