"""Owns the rows of forms: a label and a field, one line each."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Input, Label, Select


def line(name: str, placeholder: str) -> Input:
    """A field for a line of text."""
    return Input(placeholder=placeholder, id=name, compact=True)


def choice(name: str, values: list[tuple[str, str]], value: str) -> Select[str]:
    """A field with a list to choose from: (what is shown, what it means)."""
    return Select(values, id=name, value=value, compact=True, allow_blank=False)


def field(label: str, widget: Input | Select[str]) -> ComposeResult:
    """A labelled field."""
    with Horizontal(classes="field"):
        yield Label(label)
        yield widget


def choose_among(select: Select[str], values: list[tuple[str, str]]) -> None:
    """Offer these values; the chosen one stays where it still can be."""
    if list(select._options) == list(values):  # set_options would close an open list
        return
    former = select.value
    select.set_options(values)
    if former in [value for _, value in values]:
        select.value = former
