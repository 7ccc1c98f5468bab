"""A dialog that asks a question with a few answers."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Key
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from engine.foreign_text import shown
from gladius_tui.app.dialogs.dialog import Dialog


class Choice(Dialog[str | None]):
    """Returns the id of the chosen answer, None for escape.

    Args:
        answers: (id, label) of each.
        selected: id of the answer that is selected at first.
        confirm_key: a key that, like enter, takes the selected answer: the key that opened the
            dialog.
    """

    def __init__(
        self,
        title: str,
        text: str,
        answers: Sequence[tuple[str, str]],
        *,
        selected: str = "",
        confirm_key: str = "",
    ) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, answers
        self._selected, self._confirm_key = selected, confirm_key

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(shown(self._title))
            dialog.border_subtitle = "↑↓ choose · enter · esc"
            yield Static(self._text, markup=False)
            options = (Option(label, id=name) for name, label in self._answers)
            yield OptionList(*options, markup=False)

    def on_mount(self) -> None:
        answers = self.query_one(OptionList)
        names = [name for name, _ in self._answers]
        answers.highlighted = names.index(self._selected) if self._selected in names else 0
        answers.focus()

    def on_key(self, event: Key) -> None:
        if self._confirm_key and event.key == self._confirm_key:
            event.stop()
            self.take_selected()

    def take_selected(self) -> None:
        """Return the selected answer."""
        answers = self.query_one(OptionList)
        if answers.highlighted is not None:
            self.dismiss(answers.get_option_at_index(answers.highlighted).id)

    @on(OptionList.OptionSelected)
    def _option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)
