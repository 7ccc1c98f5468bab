"""Owns the lens: the student's next tokens beside the projected expert's, position by position
along fixed sentences, as the newest evaluation read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from engine.events import ProbePosition, ProbeRead
from engine.run.view import RunView
from gladius_tui.app.widgets.panes import MUTED, clean
from gladius_tui.format import NONE

_RULES = {
    "aligned": "token boundaries agree",
    "inside": "the student stands inside one of the expert's tokens",
    "crossing": "the student's token runs past the expert's",
    "end": "the end of the turn",
}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_KL_TOP = 6.0
"""KL in nats from which on a position is drawn as wholly apart."""


def shown(text: str) -> str:
    """A token so that each character of it is seen."""
    text = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return clean(text) or "∅"


def first_choices(position: ProbePosition) -> tuple[str | None, str | None]:
    """The most probable token of the student and of the expert; None where there is none."""
    if not position.tokens:
        return None, None
    student = max(position.tokens, key=lambda token: token.student)
    expert = max(position.tokens, key=lambda token: token.expert)
    return (
        student.text if student.student > 0 else None,
        expert.text if position.kept > 0 else None,
    )


def agrees(position: ProbePosition) -> bool | None:
    """Whether both would write the same; None where the expert is not heard."""
    student, expert = first_choices(position)
    return None if expert is None else student == expert


def mark(position: ProbePosition) -> str:
    """`=` the same first choice, `~` the expert's is among the student's, `≠` neither, ` ` not
    heard."""
    agreed = agrees(position)
    if agreed is None:
        return " "
    if agreed:
        return "="
    expert = max(position.tokens, key=lambda token: token.expert)
    student = sorted((token.student for token in position.tokens), reverse=True)
    return "~" if expert.student >= student[min(3, len(student) - 1)] > 0 else "≠"


def sentence_lines(reading: ProbeRead, cursor: int, width: int) -> list[Content]:
    """The sentence in its tokens, the cursor on one; below each its mark and its KL as a bar."""
    lines: list[Content] = []
    words: list[Content] = []
    marks: list[Content] = []
    used = 0

    def flush() -> None:
        nonlocal used, words, marks
        if words:
            lines.extend([Content("").join(words), Content("").join(marks)])
        words, marks, used = [], [], 0

    for n, position in enumerate(reading.positions):
        piece = shown(position.text)[: width - 1]
        room = max(len(piece), 2)
        if used + room + 1 > width:
            flush()
        style = "reverse bold" if n == cursor else ("" if n % 2 else "on $foreground 10%")
        words.append(Content.assemble((piece, style), " " * (room - len(piece) + 1)))
        sign = mark(position)
        kl = position.kl
        level = 0 if kl is None else max(1, min(8, round(kl / _KL_TOP * 8)))
        colour = {"=": "$text-success", "~": "$text-warning", "≠": "$text-error"}.get(sign, MUTED)
        marks.append(Content.assemble((f"{sign}{_BLOCKS[level]}", colour), " " * (room - 1)))
        used += room + 1
    flush()
    return lines


def bar_lines(position: ProbePosition, width: int, most: int) -> list[Content]:
    """Both distributions as bars that grow from the tokens between them: student left, expert
    right; `▸` is the token that follows, a first choice is bold and starred."""
    tokens = position.tokens[:most]
    names = [shown(token.text) for token in tokens]
    middle = max([8, *(len(name) for name in names)])
    middle = min(middle, max(8, width // 3))
    side = max(4, (width - middle - 16) // 2)
    top = max([0.05, *(max(t.student, t.expert) for t in tokens)])
    student, expert = (max((getattr(t, n) for t in tokens), default=0.0) for n in _BOTH)
    lines = []
    for n, (token, name) in enumerate(zip(tokens, names, strict=True)):
        name = name if len(name) <= middle else name[: middle - 1] + "…"
        left, right = _bar(token.student / top, side), _bar(token.expert / top, side)
        mine, theirs = token.student == student > 0, token.expert == expert > 0
        follows = n == position.follows
        lines.append(
            Content.assemble(
                (f"{_percent(token.student):>5}", "bold" if mine else MUTED),
                "★" if mine else " ",
                (left[::-1].replace("▌", "▐").rjust(side), "$primary"),
                (" ▸" if follows else "  ", "bold"),
                (name.center(middle), "bold reverse" if follows else "bold"),
                "  ",
                (right.ljust(side), "$accent"),
                "★" if theirs else " ",
                (f"{_percent(token.expert):<5}", "bold" if theirs else MUTED),
            )
        )
    return lines


_BOTH = ("student", "expert")


def _bar(share: float, width: int) -> str:
    cells = max(0.0, min(share, 1.0)) * width
    return "█" * int(cells) + ("▌" if cells - int(cells) >= 0.5 else "")


def _percent(value: float) -> str:
    if value >= 0.0995:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.0005 else "·"


def verdict(position: ProbePosition, former: ProbePosition | None, title: str) -> list[Content]:
    """What the two say at the cursor, in words."""
    student, expert = first_choices(position)
    if expert is None:
        said = Content.styled(f"{title} is not heard here: cross-entropy alone", MUTED)
    elif student == expert:
        said = Content.assemble(("= ", "$text-success bold"), "both would write ", _quoted(student))
    else:
        said = Content.assemble(
            ("≠ ", "$text-error bold"),
            ("the student would write ", ""),
            _quoted(student),
            (f", {title} ", ""),
            _quoted(expert),
        )
    follows = position.tokens[position.follows]
    kl = NONE if position.kl is None else f"{position.kl:.2f} nats"
    if position.kl is not None and former is not None and former.kl is not None:
        kl += f" (was {former.kl:.2f})"
    return [
        said,
        Content.assemble(
            ("the text goes on with ", MUTED),
            _quoted(follows.text),
            (f": student {_percent(follows.student)}, expert ", MUTED),
            (_percent(follows.expert) if position.kept else NONE, MUTED),
        ),
        Content.assemble(
            ("KL ", MUTED),
            kl,
            ("   kept by the projection ", MUTED),
            f"{position.kept:.0%}",
            (f"   {_RULES[position.rule]}", MUTED),
        ),
    ]


def _quoted(text: str | None) -> tuple[str, str]:
    return (f"“{shown(text)}”" if text is not None else NONE, "bold")


def overall(reading: ProbeRead, former: ProbeRead | None) -> Content:
    """The whole sentence in a line."""
    known = [a for p in reading.positions if (a := agrees(p)) is not None]
    kls = [p.kl for p in reading.positions if p.kl is not None]
    parts = f"agree at {sum(known)} of {len(known)} positions"
    parts += f" · mean KL {sum(kls) / len(kls):.2f}" if kls else ""
    if former is not None and (were := [p.kl for p in former.positions if p.kl is not None]):
        parts += f", was {sum(were) / len(were):.2f} at step {former.step:,}"
    return Content.styled(parts, MUTED)


class Lens(ModalScreen[None]):
    """The lens over one run's board; `refresh_lens` when that has changed."""

    BINDINGS: ClassVar = [
        Binding("left", "move(-1)", "Back", show=True, tooltip="The position before",
                id="lens.left"),
        Binding("right", "move(1)", "On", tooltip="The next position", id="lens.right"),
        Binding("home", "move(-999)", show=False, tooltip="First position", id="lens.home"),
        Binding("end", "move(999)", show=False, tooltip="Last position", id="lens.end"),
        Binding("up", "sentence(-1)", "Sentence", tooltip="The sentence before", id="lens.up"),
        Binding("down", "sentence(1)", show=False, tooltip="The next sentence", id="lens.down"),
        Binding("e,tab", "expert", "Expert", tooltip="The next expert", id="lens.expert"),
        Binding("v,escape,q", "leave", "Close", tooltip="Back to the Dashboard", id="lens.close"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    Lens {
        align: center middle;
        #lens {
            width: 112; max-width: 100%; height: auto; max-height: 100%; padding: 0 2;
            border: round $primary; background: $surface;
            border-title-style: bold; border-title-color: $foreground;
            border-subtitle-color: $foreground 60%;
        }
        #lens-body { width: 100%; height: auto; }
    }
    """

    def __init__(self, board: RunView) -> None:
        super().__init__()
        self._board = board
        self._expert = ""
        self._sentence = 0
        self._cursor = 0

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="lens", can_focus=False) as dialog:
            dialog.border_title = "Lens"
            dialog.border_subtitle = "←→ position · ↑↓ sentence · e expert · esc"
            yield Static(id="lens-body", markup=False)

    def on_mount(self) -> None:
        self.refresh_lens()

    def on_resize(self, _: events.Resize) -> None:
        self.refresh_lens()

    def show(self, board: RunView) -> None:
        """Look at this board from now on."""
        self._board = board
        self.refresh_lens()

    def refresh_lens(self) -> None:
        """Write it anew."""
        if self.is_mounted:
            self.query_one("#lens-body", Static).update(self._content())

    def _experts(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in sorted(self._board.probes)))

    def _reading(self) -> ProbeRead | None:
        """What is looked at; the choice is brought into what there is."""
        experts = self._experts()
        if not experts:
            return None
        if self._expert not in experts:
            now = self._board.expert
            self._expert = now if now in experts else experts[0]
        numbers = sorted(n for name, n in self._board.probes if name == self._expert)
        if self._sentence not in numbers:
            self._sentence = numbers[0]
        reading = self._board.probes[self._expert, self._sentence]
        self._cursor = min(max(self._cursor, 0), len(reading.positions) - 1)
        return reading

    def _content(self) -> Content:
        reading = self._reading()
        dialog = self.query_one("#lens")
        width = max(40, min(112, self.size.width) - 7)
        if reading is None:
            dialog.border_title = "Lens"
            return Content.styled(
                "Nothing was read yet: the lens looks at every evaluation, and first when the "
                "training begins. A run whose text was scored by an older version has none.",
                MUTED,
            )
        row = self._board.experts.get(reading.expert)
        title = row.title if row is not None else reading.expert
        dialog.border_title = (
            f"Lens · student beside {title} · step {reading.step:,} · "
            f"sentence {reading.probe + 1}/{reading.probes}"
        )
        position = reading.positions[self._cursor]
        former = self._board.former_probes.get((reading.expert, reading.probe))
        before = None
        if former is not None and len(former.positions) == len(reading.positions):
            before = former.positions[self._cursor]
        lines: list[Content] = []
        if reading.prompt:
            lines.append(Content.styled(f"> {clean(reading.prompt)}"[:width], MUTED))
        lines += sentence_lines(reading, self._cursor, width)
        lines += [overall(reading, former), Content("")]
        room = max(4, self.size.height - len(lines) - 9)
        lines.append(_heading(title, width))
        lines += bar_lines(position, width, room)
        lines += [Content(""), *verdict(position, before, title)]
        return Content("\n").join(lines)

    def action_move(self, by: int) -> None:
        self._cursor += by
        self.refresh_lens()

    def action_sentence(self, by: int) -> None:
        numbers = sorted(n for name, n in self._board.probes if name == self._expert)
        if numbers:
            self._sentence = numbers[(numbers.index(self._sentence) + by) % len(numbers)]
            self._cursor = 0
        self.refresh_lens()

    def action_expert(self) -> None:
        experts = self._experts()
        if experts:
            self._expert = experts[(experts.index(self._expert) + 1) % len(experts)]
        self.refresh_lens()

    def action_leave(self) -> None:
        self.dismiss(None)


def _heading(title: str, width: int) -> Content:
    left, right = "student", title
    gap: Sequence[str] = (left, " " * max(2, width - len(left) - len(right)), right)
    return Content.assemble((gap[0], "$primary bold"), gap[1], (gap[2], "$accent bold"))
