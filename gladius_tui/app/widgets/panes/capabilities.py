"""The Capabilities pane: held-out prompts answered correctly, by capability."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from engine.events import STUDENT, CapabilityScore
from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import MUTED, STRONG, join_lines
from gladius_tui.format import NONE

_LEAST_NAME = 7
_HEADS = ("", "student", "expert", "student's best")


@dataclass(frozen=True)
class _Row:
    """One capability: the student now, the best expert, the student at its best."""

    name: str
    student: str
    expert: str
    best: str
    regressed: bool
    """Whether the student answers fewer prompts than it once did; marked with ↓."""

    @property
    def student_style(self) -> str:
        """The style of the student's score."""
        return "$text-warning" if self.regressed else STRONG

    def cells(self) -> list[tuple[str, str]]:
        """(text, style) of each."""
        return [
            (self.name, MUTED),
            (self.student, self.student_style),
            (self.expert, ""),
            (self.best, MUTED),
        ]


def capabilities_pane(run: RunView, width: int, height: int) -> Content:
    """The text of the pane: a column for each capability if they have room, else a row each."""
    rows, experts = _rows(run)
    if not rows:
        return Content.styled("capabilities are measured at every evaluation", MUTED)
    lines = _columns(rows, experts, width) or _table(rows, width, height)
    return join_lines(lines[: max(height, 1)])


def _rows(run: RunView) -> tuple[list[_Row], int]:
    """The capabilities, and how many experts were scored."""
    scores = {who: {s.capability: s for s in row.scores} for who, row in run.capabilities.items()}
    student = scores.pop(STUDENT, {})
    names = dict.fromkeys([*student, *(name for row in scores.values() for name in row)])
    rows = []
    for name in names:
        best, now = run.best_capabilities.get(name), student.get(name)
        share = None if now is None else _share(now)
        regressed = share is not None and best is not None and share < best
        experts = [row[name] for row in scores.values() if name in row]
        rows.append(
            _Row(
                name=name.replace("_", " "),
                student="↓" * regressed + _fraction(now),
                expert=_fraction(max(experts, key=_share, default=None)),
                best=NONE if now is None or best is None else f"{best * now.asked:.0f}/{now.asked}",
                regressed=regressed,
            )
        )
    return rows, len(scores)


def _columns(rows: list[_Row], experts: int, width: int) -> list[Content]:
    """The capabilities side by side; empty if they do not fit."""
    heads = [head if head != "expert" or experts < 2 else "best expert" for head in _HEADS]
    label = max(map(len, heads)) + 1
    columns = [row.cells() for row in rows]
    widths = [max(len(text) for text, _ in column) + 2 for column in columns]
    if label + sum(widths) > width:
        return []
    lines = []
    for n, head in enumerate(heads):
        cells = [
            (f"{column[n][0]:>{w}}", column[n][1])
            for column, w in zip(columns, widths, strict=True)
        ]
        lines.append(Content.assemble((f"{head:<{label}}", MUTED), *cells))
    return lines


def _table(rows: list[_Row], width: int, height: int) -> list[Content]:
    """The capabilities one below the other, in two halves if they are many."""
    columns = ((8, "student"), (8, "expert"), (7, "best"))
    if width < _LEAST_NAME + 23:
        columns = ((6, "now"), (7, "expert"))
    numbers = sum(w for w, _ in columns)
    names = max(_LEAST_NAME, min(max(len(row.name) for row in rows), width - numbers))
    heading = "".join(f"{word:>{w}}" for w, word in columns)
    head = Content.styled(f"{'':<{names}}{heading}", MUTED)
    lines = []
    for row in rows:
        cells = zip(row.cells()[1:], columns, strict=False)
        lines.append(
            Content.assemble(
                (f"{row.name[:names]:<{names}}", MUTED),
                *((f"{text:>{w}}", style) for (text, style), (w, _) in cells),
            )
        )
    if len(lines) + 1 <= height or 2 * (names + numbers) + 2 > width:
        return [head, *lines]
    half = (len(lines) + 1) // 2
    left, right = [head, *lines[:half]], [head, *lines[half:]]
    right += [Content("")] * (len(left) - len(right))
    return [Content.assemble(a, "  ", b) for a, b in zip(left, right, strict=True)]


def _share(score: CapabilityScore) -> float:
    return score.right / max(1, score.asked)


def _fraction(score: CapabilityScore | None) -> str:
    return NONE if score is None else f"{score.right}/{score.asked}"
