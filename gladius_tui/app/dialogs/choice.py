"""Owns the dialogs: leaving while jobs run, asking once before what can't be undone, a line of
input, and the text that a command prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, ScreenResultType
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option


class Dialog(ModalScreen[ScreenResultType]):
    """What dialogs look like."""

    SCOPED_CSS = False
    CSS = """
    ModalScreen { align: center middle; background: $background 60%; }
    .dialog {
        width: 64;
        max-width: 96%;
        height: auto;
        max-height: 90%;
        border: round $primary;
        border-title-style: bold;
        border-title-color: $foreground;
        border-subtitle-color: $foreground 60%;
        background: $surface;
        padding: 1 2;
    }
    .dialog OptionList {
        background: $surface;
        border: none;
        height: auto;
        max-height: 12;
        padding: 0;
        margin-top: 1;
        &:focus { border: none; background-tint: $foreground 0%; }
    }
    Help .dialog { width: 92; max-width: 96%; }
    Printed .dialog { width: 92%; height: 80%; }
    """


class Choice(Dialog[str | None]):
    """A question with a few answers; gives the id of the one that is taken, None for esc.

    `again` is a key that takes the answer that is marked, beside enter: the key that opened it.
    """

    BINDINGS: ClassVar = [
        Binding("escape", "leave", "Back", tooltip="Close, change nothing", id="dialog.back"),
    ]

    def __init__(
        self,
        title: str,
        text: str,
        answers: Sequence[tuple[str, str]],
        *,
        marked: str = "",
        again: str = "",
    ) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, answers
        self._marked, self._again = marked, again

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "↑↓ choose · enter · esc"
            yield Static(self._text, markup=False)
            yield OptionList(*(Option(label, id=name) for name, label in self._answers))

    def on_mount(self) -> None:
        answers = self.query_one(OptionList)
        names = [name for name, _ in self._answers]
        answers.highlighted = names.index(self._marked) if self._marked in names else 0
        answers.focus()

    def on_key(self, event) -> None:
        if self._again and event.key == self._again:
            event.stop()
            self.take_marked()

    def take_marked(self) -> None:
        """Take the answer that is marked."""
        answers = self.query_one(OptionList)
        if answers.highlighted is not None:
            self.dismiss(answers.get_option_at_index(answers.highlighted).id)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)

    def action_leave(self) -> None:
        self.dismiss(None)


class Ask(Dialog[list[str] | None]):
    """A few lines of input; gives what was typed, None for esc."""

    BINDINGS: ClassVar = [
        Binding("escape", "leave", "Back", tooltip="Close, change nothing", id="dialog.back"),
    ]

    def __init__(self, title: str, text: str, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title, self._text, self._fields = title, text, fields

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = self._title
            dialog.border_subtitle = "tab next · enter · esc"
            yield Static(self._text, markup=False)
            for label, placeholder in self._fields:
                yield Label(label, classes="dim")
                yield Input(placeholder=placeholder, compact=True)

    def on_mount(self) -> None:
        self.query(Input).first().focus()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        inputs = list(self.query(Input))
        place = inputs.index(event.input)
        if place + 1 < len(inputs) and not inputs[place + 1].value:
            inputs[place + 1].focus()
        else:
            self.dismiss([entry.value.strip() for entry in inputs])

    def action_leave(self) -> None:
        self.dismiss(None)


class Printed(Dialog[None]):
    """What `gladius_train ARGV` prints, run in a process of its own."""

    BINDINGS: ClassVar = [
        Binding("escape,q", "leave", "Back", tooltip="Close", id="dialog.back"),
    ]

    def __init__(self, root: str, argv: Sequence[str]) -> None:
        super().__init__()
        self._root, self._argv = root, list(argv)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = f"gladius_train {' '.join(self._argv)}"
            dialog.border_subtitle = "↑↓ scroll · esc"
            with VerticalScroll():
                yield Static("…", markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self._run()

    @work(thread=True, exit_on_error=False)
    def _run(self) -> None:
        from gladius_tui.launch import printed

        text = printed(self._root, self._argv)
        self.app.call_from_thread(self._show, text)

    def _show(self, text: str) -> None:
        if self.is_mounted:
            self.query_one(Static).update(text or "nothing")

    def action_leave(self) -> None:
        self.dismiss(None)
