"""Rows of a form: a label and a field, one line each."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input, Label, Select

from gladius_tui.app.widgets.line_input import LineInput


def text_input(name: str, placeholder: str) -> Input:
    """A field for a line of text."""
    return LineInput(placeholder=placeholder, id=name, compact=True)


def select(name: str, values: list[tuple[str, str]], value: str) -> Select[str]:
    """A field with a list of (label, value) to choose from."""
    return Select(values, id=name, value=value, compact=True, allow_blank=False)


def form_row(label: str, widget: Input | Select[str]) -> ComposeResult:
    """A row with a label and a field."""
    with Horizontal(classes="field"):
        yield Label(label, markup=False)
        yield widget


def set_options(field: Select[str], values: list[tuple[str, str]]) -> None:
    """Offer these (label, value); the current value stays selected if it is still offered."""
    if list(field._options) == list(values):  # Select.set_options would close an open list
        return
    former = field.value
    field.set_options(values)
    if former in [value for _, value in values]:
        field.value = former
