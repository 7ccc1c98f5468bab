"""Owns the dialog in which some of many things are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import SelectionList, Static
from textual.widgets.selection_list import Selection


class Pick(ModalScreen[list[str] | None]):
    """Gives the ids that were chosen, in their order; None for esc."""

    BINDINGS: ClassVar = [
        Binding("escape", "leave", "Back", tooltip="Close, change nothing", id="dialog.back"),
        Binding("enter", "take", "Take", priority=True, tooltip="Show these", id="pick.take"),
    ]
    DEFAULT_CSS = """
    Pick SelectionList { height: auto; max-height: 16; border: none; padding: 0; margin-top: 1;
        background: $surface; &:focus { border: none; } }
    """

    def __init__(
        self, title: str, text: str, choices: Sequence[tuple[str, str]], chosen: Sequence[str]
    ) -> None:
        super().__init__()
        self._title, self._text = title, text
        self._choices, self._chosen = choices, chosen

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "space choose · enter take · esc"
            yield Static(self._text, markup=False)
            yield SelectionList[str](
                *(Selection(label, name, name in self._chosen) for name, label in self._choices)
            )

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()

    def action_take(self) -> None:
        chosen = set(self.query_one(SelectionList).selected)
        self.dismiss([name for name, _ in self._choices if name in chosen])

    def action_leave(self) -> None:
        self.dismiss(None)
