"""Rows of a form: a label and a field, one line each."""

from __future__ import annotations

import shlex

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.events import Paste
from textual.widgets import Input, Label, Select

from engine.foreign_text import shown
from gladius_tui.app.widgets.line_input import LineInput


class ListInput(LineInput):
    """A field for several entries as in a shell; pasted lines become entries."""

    def _on_paste(self, event: Paste) -> None:
        lines = [line.strip() for line in event.text.splitlines() if line.strip()]
        if len(lines) < 2:
            return  # as in any field
        event.prevent_default()
        event.stop()
        start, end = sorted(self.selection)
        before, after = self.value[:start], self.value[end:]
        text = shlex.join(lines)
        text = f"{' ' if before and not before.endswith(' ') else ''}{text}"
        text += " " if after and not after.startswith(" ") else ""
        self.replace(text, start, end)


def text_input(name: str, placeholder: str, *, several: bool = False) -> Input:
    """A field for a line of text, or for `several` entries as in a shell."""
    kind = ListInput if several else LineInput
    return kind(placeholder=placeholder, id=name, compact=True)


def select(name: str, values: list[tuple[str, str]], value: str) -> Select[str]:
    """A field with a list of (label, value) to choose from."""
    return Select(_plain(values), id=name, value=value, compact=True, allow_blank=False)


def _plain(values: list[tuple[str, str]]) -> list[tuple[Text, str]]:
    """The labels as text that is not parsed as markup."""
    return [(Text(shown(label)), value) for label, value in values]


def form_row(label: str, widget: Input | Select[str]) -> ComposeResult:
    """A row with a label and a field."""
    with Horizontal(classes="field"):
        yield Label(label, markup=False)
        yield widget


def set_options(field: Select[str], values: list[tuple[str, str]]) -> None:
    """Offer these (label, value); the current value stays selected if it is still offered."""
    options = _plain(values)
    if list(field._options) == options:  # Select.set_options would close an open list
        return
    former = field.value
    field.set_options(options)
    if former in [value for _, value in values]:
        field.value = former
