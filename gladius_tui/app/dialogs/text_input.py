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
from gladius_tui.app.widgets.line_input import LineInput


class TextInput(Dialog[list[str] | None]):
    """Returns the text of each field, None for escape.

    Args:
        fields: (label, placeholder) of each.
        values: what the fields hold at first.
        error: why an earlier input was refused; shown above the fields.
        optional: whether fields may be empty.
    """

    def __init__(
        self,
        title: str,
        text: str,
        fields: Sequence[tuple[str, str]],
        *,
        values: Sequence[str] = (),
        error: str = "",
        optional: bool = False,
    ) -> None:
        super().__init__()
        self._title, self._text, self._fields = title, text, fields
        self._values = [*values, *("" for _ in fields)][: len(fields)]
        self._error, self._optional = error, optional

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = Content(shown(self._title))
            dialog.border_subtitle = "tab next · enter · esc"
            yield Static(self._text, markup=False)
            yield Static(markup=False, id="input-error", classes="error")
            for (label, placeholder), value in zip(self._fields, self._values, strict=True):
                yield Label(label, classes="dim", markup=False)
                yield LineInput(value, placeholder=placeholder, compact=True)

    def on_mount(self) -> None:
        self._show_error(self._error)
        self.query(Input).first().focus()

    def _show_error(self, text: str) -> None:
        line = self.query_one("#input-error", Static)
        line.update(f"✗ {text}")
        line.display = bool(text)

    @on(Input.Submitted)
    def _input_submitted(self, event: Input.Submitted) -> None:
        inputs = list(self.query(Input))
        index = inputs.index(event.input)
        values = [entry.value.strip() for entry in inputs]
        if index + 1 < len(inputs) and not values[index + 1]:
            inputs[index + 1].focus()
        elif not self._optional and not all(values):
            first = values.index("")
            self._show_error(f"enter the {self._fields[first][0]} too")
            inputs[first].focus()
        else:
            self.dismiss(values)
