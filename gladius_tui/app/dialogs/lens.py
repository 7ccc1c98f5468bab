"""The lens: compare the next-token predictions of student and expert, position by position, along
fixed sentences, as measured at the newest evaluation.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import Static

from engine.events import ProbeRead
from engine.foreign_text import shown
from engine.run.view import RunView
from gladius_tui.app.dialogs.dialog import Dialog
from gladius_tui.app.dialogs.lens_text import (
    bar_lines,
    heading_line,
    overall_line,
    position_lines,
    sentence_lines,
)
from gladius_tui.app.widgets.panes.text import MUTED, printable

_WIDTH = 112
_NO_READINGS = (
    "Nothing was measured yet. The lens is updated at every evaluation, first at the beginning of "
    "training. A run whose targets were computed by an older version has no readings."
)


class Lens(Dialog[None]):
    """The lens over one run. Call `refresh_lens` when the run's probes have changed."""

    BINDINGS: ClassVar = [
        Binding("left", "move(-1)", "Previous", tooltip="The previous position", id="lens.left"),
        Binding("right", "move(1)", "Next", tooltip="The next position", id="lens.right"),
        Binding("home", "move(-999)", show=False, tooltip="First position", id="lens.home"),
        Binding("end", "move(999)", show=False, tooltip="Last position", id="lens.end"),
        Binding("up", "sentence(-1)", "Sentence", tooltip="The previous sentence", id="lens.up"),
        Binding("down", "sentence(1)", show=False, tooltip="The next sentence", id="lens.down"),
        Binding("e,tab", "expert", "Expert", tooltip="The next expert", id="lens.expert"),
        Binding("v,escape,q", "cancel", "Close", tooltip="Back to the Dashboard", id="lens.close"),
    ]  # fmt: skip

    def __init__(self, run: RunView) -> None:
        super().__init__()
        self._run = run
        self._expert = ""
        self._sentence = 0
        self._cursor = 0

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="lens", classes="dialog", can_focus=False) as dialog:
            dialog.border_title = "Lens"
            dialog.border_subtitle = "←→ position · ↑↓ sentence · e expert · esc"
            yield Static(id="lens-body", markup=False)

    def on_mount(self) -> None:
        self.refresh_lens()
        # Its height follows from the text, which is made for a size that is not known before.
        self.call_after_refresh(self.refresh_lens)

    def on_resize(self, _: Resize) -> None:
        self.refresh_lens()

    def show(self, run: RunView) -> None:
        """Show this run from now on."""
        self._run = run
        self.refresh_lens()

    def refresh_lens(self) -> None:
        """Redraw it."""
        if self.is_mounted:
            self.query_one("#lens-body", Static).update(self._content(), layout=True)

    def _experts(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in sorted(self._run.probes)))

    def _sentences(self) -> list[int]:
        """The numbers of the sentences that the selected expert has readings of."""
        return sorted(n for name, n in self._run.probes if name == self._expert)

    def _reading(self) -> ProbeRead | None:
        """The selected reading; a selection that does not exist is replaced by one that does."""
        experts = self._experts()
        if not experts:
            return None
        if self._expert not in experts:
            current = self._run.expert
            self._expert = current if current in experts else experts[0]
        sentences = self._sentences()
        if self._sentence not in sentences:
            self._sentence = sentences[0]
        reading = self._run.probes[self._expert, self._sentence]
        self._cursor = min(max(self._cursor, 0), len(reading.positions) - 1)
        return reading

    def _content(self) -> Content:
        reading = self._reading()
        dialog = self.query_one("#lens")
        width = max(40, min(_WIDTH, self.size.width) - 7)
        if reading is None:
            dialog.border_title = "Lens"
            return Content.styled(_NO_READINGS, MUTED)
        row = self._run.experts.get(reading.expert)
        title = shown(row.title if row is not None else reading.expert)
        dialog.border_title = Content(
            f"Lens · student and {title} · step {reading.step:,} · "
            f"sentence {reading.probe + 1}/{reading.probes}"
        )
        position = reading.positions[self._cursor]
        previous = self._run.former_probes.get((reading.expert, reading.probe))
        previous_position = None
        if previous is not None and len(previous.positions) == len(reading.positions):
            previous_position = previous.positions[self._cursor]
        lines: list[Content] = []
        if reading.prompt:
            lines.append(Content.styled(f"> {printable(reading.prompt)}"[:width], MUTED))
        lines += sentence_lines(reading, self._cursor, width)
        lines += [overall_line(reading, previous), Content("")]
        most = max(4, self.size.height - len(lines) - 9)
        lines.append(heading_line(title, width))
        lines += bar_lines(position, width, most)
        lines += [Content(""), *position_lines(position, previous_position, title)]
        return Content("\n").join(lines)

    def action_move(self, offset: int) -> None:
        self._cursor += offset
        self.refresh_lens()

    def action_sentence(self, offset: int) -> None:
        if sentences := self._sentences():
            index = sentences.index(self._sentence) + offset
            self._sentence = sentences[index % len(sentences)]
            self._cursor = 0
        self.refresh_lens()

    def action_expert(self) -> None:
        if experts := self._experts():
            self._expert = experts[(experts.index(self._expert) + 1) % len(experts)]
        self.refresh_lens()
