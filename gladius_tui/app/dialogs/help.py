"""Owns the help: written from the bindings that hold on the screen below it, and their tooltips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import ActiveBinding, Binding
from textual.containers import VerticalScroll
from textual.widgets import Static

from gladius_tui.app.dialogs.choice import Dialog
from gladius_tui.app.screens.base import GladiusScreen


class Help(Dialog[None]):
    """Keys of the screen it was opened on."""

    BINDINGS: ClassVar = [
        Binding("escape,question_mark,q", "leave", "Back", tooltip="Close", id="dialog.back"),
    ]
    DEFAULT_CSS = """
    Help { .about { margin-bottom: 1; } .group { text-style: bold; margin-top: 1; } }
    """

    def __init__(self, screen: GladiusScreen, bindings: Iterable[ActiveBinding]) -> None:
        super().__init__()
        self._of = screen
        self._active = list(bindings)

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="dialog") as dialog:
            dialog.border_title = f"Help: {self._of.title}"
            dialog.border_subtitle = "↑↓ scroll · esc"
            yield Static(self._of.about(), classes="about", markup=False)
            for name, table in self._groups():
                yield Static(name, classes="group", markup=False)
                yield Static(table)
            yield Static(
                "Mouse: click a mode, a row, a key of the last line. Keys can be remapped by the "
                'names in brackets, in settings.toml: [keys] "app.quit" = "x"',
                classes="dim group",
                markup=False,
            )

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def _groups(self) -> Iterable[tuple[str, Table]]:
        """The bindings by where they hold: the focused part, the screen, everywhere."""
        groups: dict[str, dict[str, tuple[list[str], list[str], Binding, str]]] = {}
        for active in self._active:
            binding = active.binding
            if binding.system or not (binding.description or active.tooltip):
                continue
            if isinstance(active.node, App) or (not binding.id and active.node is self._of):
                name = "Everywhere"
            elif isinstance(active.node, GladiusScreen):
                name = "On this screen"
            else:
                name = f"In the part that has the focus ({type(active.node).__name__})"
            entry = groups.setdefault(name, {}).setdefault(
                binding.action, ([], [], binding, active.tooltip or "")
            )
            if binding.id and binding.id not in entry[1]:
                entry[1].append(binding.id)
            key = self.app.get_key_display(binding)
            if key not in entry[0]:
                entry[0].append(key)
        order = sorted(groups, key=lambda name: (name == "Everywhere", name != "On this screen"))
        for name in order:
            table = Table.grid(padding=(0, 2))
            table.add_column(width=12, no_wrap=True)
            table.add_column(width=14)
            table.add_column(ratio=1, style="dim")
            for keys, ids, binding, tooltip in groups[name].values():
                known = "".join(f"  [{one}]" for one in ids)
                cells = (" ".join(keys), binding.description, f"{tooltip}{known}")
                table.add_row(*(Text(cell) for cell in cells))
            yield name, table

    def action_leave(self) -> None:
        self.dismiss(None)
