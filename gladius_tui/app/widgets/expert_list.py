"""A list of experts, any number of which can be selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.binding import Binding
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option


class ExpertList(OptionList):
    """A row for each expert; a sign shows whether it is selected, not colour alone."""

    class SelectionChanged(Message):
        """The user has selected or deselected an expert."""

    BINDINGS: ClassVar = [
        Binding("space", "select", "Select", show=False,
                tooltip="Train with this expert, or without it"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__(id="experts", compact=True)
        self._labels: dict[str, str] = {}
        self.selected: tuple[str, ...] = ()
        """Names, in the order of the list."""

    def set_experts(self, labels: Mapping[str, str]) -> None:
        """Offer these experts; labels by name."""
        if labels != self._labels:
            self._labels = dict(labels)
            self.clear_options()
            self.add_options([Option(self._prompt(name), id=name) for name in labels])

    def select(self, names: Sequence[str]) -> None:
        """Select exactly these experts; no message is sent."""
        selected = tuple(name for name in self._labels if name in names)
        if selected != self.selected:
            self.selected = selected
            for name in self._labels:
                self.replace_option_prompt(name, self._prompt(name))

    def _prompt(self, name: str) -> Content:
        sign = "● " if name in self.selected else "○ "
        text = Content(sign + self._labels[name])
        return text if name in self.selected else text.stylize("$foreground 60%")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.select(tuple(set(self.selected) ^ {event.option_id or ""}))
        self.post_message(self.SelectionChanged())
