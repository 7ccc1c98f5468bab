"""Questions to the student, with the answers of student and expert side by side."""

from __future__ import annotations

import secrets
from typing import ClassVar

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Input, Static

from engine.events import Question, QuestionAnswered, decode_event
from engine.foreign_text import LINES, shown
from gladius_tui.app.dialogs.dialog import Dialog
from gladius_tui.app.job_messages import CommandAnswered
from gladius_tui.app.services import services
from gladius_tui.app.widgets.line_input import LineInput

_SIDE_BY_SIDE = 80
"""Columns of the terminal from which on the answers stand side by side."""
_ABOUT = (
    "A running training answers between two steps; its numbers do not change by it. Without one, "
    "the finished model or the newest checkpoint answers, with an expert of its run."
)


class Ask(Dialog[None]):
    """A line for the question, and the questions so far with their answers.

    Args:
        answers: to those asked before; new ones are appended.
    """

    BINDINGS: ClassVar = [
        Binding("pageup", "scroll(-1)", "Earlier", show=False, id="ask.up", tooltip="Scroll up"),
        Binding("pagedown", "scroll(1)", "Later", show=False, id="ask.down", tooltip="Scroll down"),
    ]

    def __init__(self, answers: list[QuestionAnswered]) -> None:
        super().__init__()
        self.answers = answers
        self.waiting = ""
        """The question that is being answered."""
        self._error = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Ask"
            dialog.border_subtitle = "enter ask · page up/down scroll · esc"
            with VerticalScroll(id="ask-answers", can_focus=False):
                yield Static(id="ask-text", markup=False)
            yield LineInput(placeholder="a question to the student", compact=True, id="ask-line")

    def on_mount(self) -> None:
        self.query_one(LineInput).focus()
        self.show()

    def on_resize(self) -> None:
        self.show()

    def action_scroll(self, direction: int) -> None:
        area = self.query_one(VerticalScroll)
        area.scroll_relative(y=direction * max(1, area.size.height - 1), animate=False)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        prompt = event.value.strip()
        if not prompt or self.waiting:
            return
        event.input.clear()
        self.waiting, self._error = prompt, ""
        self.show()
        question = Question(id=secrets.token_hex(6), prompt=prompt)
        watcher = services(self).watcher
        if "train" in watcher.jobs:
            watcher.send(self, "train", question)
        else:
            self._ask_model(prompt)

    def on_command_answered(self, message: CommandAnswered) -> None:
        if isinstance(message.event, QuestionAnswered):
            self._take(message.event, "")
        else:
            self._take(None, message.error or "the run ended before it answered; ask again")

    @work(thread=True, exclusive=True, group="ask", exit_on_error=False)
    def _ask_model(self, prompt: str) -> None:
        """Ask the model on disk, in a short job."""
        from gladius_tui.launch import printed

        text = printed(str(services(self).ws.root), ["--json", "ask", "--", prompt])
        event = _answer_in(text)
        error = "" if event else text.rpartition("error: ")[2].strip() or "there was no answer"
        self.app.call_later(self._take, event, error)

    def _take(self, event: QuestionAnswered | None, error: str) -> None:
        self.waiting, self._error = "", error
        if event is not None:
            self.answers.append(event)
        if self.is_mounted:
            self.show()

    def show(self) -> None:
        """Redraw the questions and answers."""
        if not self.is_mounted or not self.query("#ask-text"):
            return
        wide = self.size.width >= _SIDE_BY_SIDE
        parts: list[RenderableType] = [_answered(event, wide) for event in self.answers]
        if self.waiting:
            parts.append(Text(f"> {self.waiting}\n  waiting for the answer …", style="dim"))
        if self._error:
            style = self.app.theme_variables.get("text-error", "")
            parts.append(Text(f"✗ {self._error}", style=style))
        self.query_one("#ask-text", Static).update(Group(*(parts or [Text(_ABOUT, style="dim")])))
        area = self.query_one(VerticalScroll)
        self.call_after_refresh(area.scroll_end, animate=False)


def _answered(event: QuestionAnswered, wide: bool) -> RenderableType:
    """A question and its answers: in columns if there is room for them."""
    parts: list[RenderableType] = [Text(f"> {shown(event.prompt)}", style="dim")]
    if event.answers:
        columns = len(event.answers) if wide else 1
        grid = Grid.grid(padding=(0, 2, 0, 0), expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        texts = [
            Text.assemble((f"{answer.title}\n", "bold"), _shown(answer.text, answer.complete))
            for answer in event.answers
        ]
        for n in range(0, len(texts), columns):
            grid.add_row(*texts[n : n + columns])
        parts.append(grid)
    parts += [Text(event.note, style="dim")] if event.note else []
    return Group(*parts, Text(""))


def _shown(text: str, complete: bool) -> str:
    answer = shown(text, keep=LINES) or "(an empty answer)"
    return answer if complete else f"{answer} …"


def _answer_in(text: str) -> QuestionAnswered | None:
    """The answer among the lines that `ask --json` printed."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                event = decode_event(line)
            except msgspec.MsgspecError:
                continue
            if isinstance(event, QuestionAnswered):
                return event
    return None
