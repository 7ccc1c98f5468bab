"""The names of the Dashboard's panes, for terminals that have room for one pane at a time."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widgets import Static


class PaneTabs(Static):
    """A line of names, one of them selected."""

    @dataclass(eq=False)
    class Selected(Message):
        """A name was clicked."""

        pane: str

    def __init__(self, names: list[str], selected: str) -> None:
        super().__init__(id="tabs", markup=False)
        self.names = names
        self.selected = selected

    def on_mount(self) -> None:
        self.select(self.selected)

    def set_names(self, names: list[str]) -> None:
        """Show these names."""
        if names != self.names:
            self.names = names
            self.select(self.selected)

    def select(self, name: str) -> None:
        """Select a name."""
        self.selected = name
        parts: list[str | tuple[str, str]] = []
        for tab in self.names:
            style = "bold reverse" if tab == name else "$foreground 60%"
            parts += [(f" {tab.title()} ", style), " "]
        self.update(Content.assemble(*parts), layout=False)

    def neighbour(self, offset: int) -> str:
        """The name `offset` positions after the selected one."""
        if self.selected not in self.names:
            return self.names[0]
        return self.names[(self.names.index(self.selected) + offset) % len(self.names)]

    def on_click(self, event: Click) -> None:
        end = 0
        for name in self.names:
            end += len(name) + 3
            if event.x < end:
                self.post_message(self.Selected(name))
                return
