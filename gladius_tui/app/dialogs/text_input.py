"""A dialog with a few lines of text input."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, Label, Static

from engine.foreign_text import shown
from gladius_tui.app.dialogs.dialog import Dialog


class TextInput(Dialog[list[str] | None]):
    """Returns the text of each field, None for escape.

    Args:
        fields: (label, placeholder) of each.
    """

    def __init__(self, title: str, text: str, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title, self._text, self._fields = title, text, fields

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(shown(self._title))
            dialog.border_subtitle = "tab next · enter · esc"
            yield Static(self._text, markup=False)
            for label, placeholder in self._fields:
                yield Label(label, classes="dim", markup=False)
                yield Input(placeholder=placeholder, compact=True)

    def on_mount(self) -> None:
        self.query(Input).first().focus()

    @on(Input.Submitted)
    def _input_submitted(self, event: Input.Submitted) -> None:
        inputs = list(self.query(Input))
        index = inputs.index(event.input)
        if index + 1 < len(inputs) and not inputs[index + 1].value:
            inputs[index + 1].focus()
        else:
            self.dismiss([entry.value.strip() for entry in inputs])
