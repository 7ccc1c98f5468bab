"""The help of a screen, generated from its active bindings and their tooltips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from gladius_tui.app.dialogs.dialog import Dialog

_EVERYWHERE = "Everywhere"
_THIS_SCREEN = "On this screen"
_FOOTNOTE = (
    "Mouse: click a mode, a row, a pane or a key of the last line. docs/app.md explains the app, "
    "and how to remap its keys."
)


@dataclass
class _Entry:
    """One action, and all its keys."""

    description: str
    tooltip: str
    keys: list[str] = field(default_factory=list)


class Help(Dialog[None]):
    """The keys of a screen.

    Args:
        screen: the screen that the help is about.
        about: what the screen is for.
        bindings: the screen's active bindings.
    """

    BINDINGS: ClassVar = [
        Binding("escape,question_mark,q", "cancel", "Back", tooltip="Close", id="dialog.back"),
    ]

    def __init__(self, screen: Screen, about: str, bindings: Iterable[ActiveBinding]) -> None:
        super().__init__()
        self._of = screen
        self._about = about
        self._active = list(bindings)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog") as dialog:
            dialog.border_title = Content(f"Help: {self._of.title}")
            dialog.border_subtitle = "↑↓ scroll · esc"
            yield Static(self._about, classes="about", markup=False)
            for title, table in self.tables():
                yield Static(title, classes="group", markup=False)
                yield Static(table, markup=False)
            yield Static(_FOOTNOTE, classes="dim group", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def tables(self) -> Iterator[tuple[str, Table]]:
        """(title, table) of the bindings: the screen's, the focused widget's, the app's."""
        groups = self._groups()
        for title in sorted(groups, key=lambda name: (name == _EVERYWHERE, name != _THIS_SCREEN)):
            table = Table.grid(padding=(0, 2))
            table.add_column(width=12, no_wrap=True)
            table.add_column(width=14)
            table.add_column(ratio=1, style="dim")
            for entry in groups[title].values():
                cells = (" ".join(entry.keys), entry.description, entry.tooltip)
                table.add_row(*(Text(cell) for cell in cells))
            yield title, table

    def _groups(self) -> dict[str, dict[str, _Entry]]:
        """By title and action: the entries."""
        groups: dict[str, dict[str, _Entry]] = {}
        for active in self._active:
            binding = active.binding
            if binding.system or not (binding.description or active.tooltip):
                continue
            group = groups.setdefault(self._group_of(active), {})
            entry = group.setdefault(
                binding.action, _Entry(binding.description, active.tooltip or "")
            )
            key = self.app.get_key_display(binding)
            if key not in entry.keys:
                entry.keys.append(key)
        return groups

    def _group_of(self, active: ActiveBinding) -> str:
        if active.node is self._of:
            # Bindings without an id are Textual's own.
            return _THIS_SCREEN if active.binding.id else _EVERYWHERE
        if isinstance(active.node, App):
            return _EVERYWHERE
        title = active.node.border_title if isinstance(active.node, Widget) else ""
        return f"In the focused pane ({title})" if title else "In the focused field"
