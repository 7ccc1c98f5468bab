"""A dialog in which any number of items can be selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList, SelectionList, Static
from textual.widgets.selection_list import Selection

from engine.foreign_text import shown
from gladius_tui.app.dialogs.dialog import Dialog


class _Items(SelectionList[str]):
    """A list that toggles the row on which space was pressed. Textual toggles the row that is
    highlighted when the message arrives, which after a fast `space down` is the next one."""

    def _on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.prevent_default()  # SelectionList's own handler would toggle another row
        event.stop()
        if isinstance(event.option, Selection):
            self.toggle(event.option)


class Pick(Dialog[list[str] | None]):
    """Returns the ids that were selected, in the order of the items; None for escape.

    Args:
        items: (id, label) of each.
        selected: ids that are selected at first.
    """

    BINDINGS: ClassVar = [
        Binding("enter", "accept", "Accept", priority=True, tooltip="Show these", id="pick.take"),
    ]

    def __init__(
        self, title: str, text: str, items: Sequence[tuple[str, str]], selected: Sequence[str]
    ) -> None:
        super().__init__()
        self._title, self._text = title, text
        self._items, self._selected = items, selected

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(shown(self._title))
            dialog.border_subtitle = "space select · enter accept · esc"
            yield Static(self._text, markup=False)
            yield _Items(
                *(
                    Selection(Content(shown(label)), name, name in self._selected)
                    for name, label in self._items
                )
            )

    def on_mount(self) -> None:
        self.query_one(SelectionList).focus()

    def action_accept(self) -> None:
        selected = set(self.query_one(SelectionList).selected)
        self.dismiss([name for name, _ in self._items if name in selected])
