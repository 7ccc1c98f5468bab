"""The text of the lens: next-token predictions of student and expert along a sentence.

The expert's distribution is shown after its projection into the student's vocabulary.
"""

from __future__ import annotations

from textual.content import Content

from engine.events import ProbePosition, ProbeRead
from gladius_tui.app.widgets.panes.text import MUTED, Part, printable
from gladius_tui.format import NONE

_RULES = {
    "aligned": "token boundaries match",
    "inside": "the boundary is inside one of the expert's tokens",
    "crossing": "the student's token extends past the expert's",
    "end": "the end of the turn",
}
_SIGN_COLOURS = {"=": "$text-success", "~": "$text-warning", "≠": "$text-error"}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_KL_TOP = 6.0
"""KL in nats from which on a position gets the tallest bar."""
_NEAR_RANK = 4
"""The expert's top token counts as near if it is among so many top tokens of the student."""


def visible(text: str) -> str:
    """A token with its white space made visible."""
    text = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return printable(text) or "∅"


def top_tokens(position: ProbePosition) -> tuple[str | None, str | None]:
    """The most probable token of the student and of the expert; None if there is none."""
    if not position.tokens:
        return None, None
    student = max(position.tokens, key=lambda token: token.student)
    expert = max(position.tokens, key=lambda token: token.expert)
    return (
        student.text if student.student > 0 else None,
        expert.text if position.kept > 0 else None,
    )


def agrees(position: ProbePosition) -> bool | None:
    """Whether both have the same top token; None if the expert has no target here."""
    student, expert = top_tokens(position)
    return None if expert is None else student == expert


def agreement_sign(position: ProbePosition) -> str:
    """`=` the same top token, `~` the expert's is among the student's top tokens, `≠` neither,
    ` ` no target."""
    agreed = agrees(position)
    if agreed is None:
        return " "
    if agreed:
        return "="
    expert = max(position.tokens, key=lambda token: token.expert)
    student = sorted((token.student for token in position.tokens), reverse=True)
    return "~" if expert.student >= student[min(_NEAR_RANK, len(student)) - 1] > 0 else "≠"


def sentence_lines(reading: ProbeRead, cursor: int, width: int) -> list[Content]:
    """The sentence in its tokens, one of them selected; below each its sign and its KL as a bar."""
    lines: list[Content] = []
    tokens: list[Content] = []
    signs: list[Content] = []
    used = 0
    for n, position in enumerate(reading.positions):
        token = visible(position.text)[: width - 1]
        cells = max(len(token), 2)
        if used + cells + 1 > width:
            lines += [Content("").join(tokens), Content("").join(signs)]
            tokens, signs, used = [], [], 0
        style = "reverse bold" if n == cursor else ("" if n % 2 else "on $foreground 10%")
        tokens.append(Content.assemble((token, style), " " * (cells - len(token) + 1)))
        signs.append(_sign_and_kl(position).append(" " * (cells - 1)))
        used += cells + 1
    if tokens:
        lines += [Content("").join(tokens), Content("").join(signs)]
    return lines


def _sign_and_kl(position: ProbePosition) -> Content:
    sign = agreement_sign(position)
    level = 0 if position.kl is None else max(1, min(8, round(position.kl / _KL_TOP * 8)))
    return Content.styled(f"{sign}{_BLOCKS[level]}", _SIGN_COLOURS.get(sign, MUTED))


def bar_lines(position: ProbePosition, width: int, most: int) -> list[Content]:
    """Both distributions as bars that grow from the tokens between them: student left, expert
    right. `▸` marks the actual next token; a top token is bold and starred."""
    student_top = max((token.student for token in position.tokens), default=0.0)
    expert_top = max((token.expert for token in position.tokens), default=0.0)
    tokens = [position.tokens[n] for n in _shown_tokens(position, most)]
    names = [visible(token.text) for token in tokens]
    middle = max([8, *(len(name) for name in names)])
    middle = min(middle, max(8, width // 3))
    side = max(4, (width - middle - 16) // 2)
    scale = max([0.05, *(max(t.student, t.expert) for t in tokens)])
    lines = []
    for token, name in zip(tokens, names, strict=True):
        name = name if len(name) <= middle else name[: middle - 1] + "…"
        left, right = _bar(token.student / scale, side), _bar(token.expert / scale, side)
        is_student_top = token.student == student_top > 0
        is_expert_top = token.expert == expert_top > 0
        is_next = token is position.tokens[position.follows]
        parts: list[Part] = [
            (f"{_percent(token.student):>5}", "bold" if is_student_top else MUTED),
            "★" if is_student_top else " ",
            (left[::-1].replace("▌", "▐").rjust(side), "$primary"),
            (" ▸" if is_next else "  ", "bold"),
            (name.center(middle), "bold reverse" if is_next else "bold"),
            "  ",
            (right.ljust(side), "$accent"),
            "★" if is_expert_top else " ",
            (f"{_percent(token.expert):<5}", "bold" if is_expert_top else MUTED),
        ]
        lines.append(Content.assemble(*parts))
    return lines


def _shown_tokens(position: ProbePosition, most: int) -> list[int]:
    """Indices of the tokens that have room: the top ones of both, the actual next token, then the
    others; in their order."""
    tokens = position.tokens
    first = [
        max(range(len(tokens)), key=lambda n: tokens[n].student, default=0),
        max(range(len(tokens)), key=lambda n: tokens[n].expert, default=0),
        position.follows,
    ]
    chosen = list(dict.fromkeys([*first, *range(len(tokens))]))[:most]
    return sorted(n for n in chosen if n < len(tokens))


def _bar(fraction: float, width: int) -> str:
    cells = max(0.0, min(fraction, 1.0)) * width
    return "█" * int(cells) + ("▌" if cells - int(cells) >= 0.5 else "")


def _percent(value: float) -> str:
    if value >= 0.0995:
        return f"{value:.0%}"
    return f"{value:.1%}" if value >= 0.0005 else "·"


def position_lines(
    position: ProbePosition, previous: ProbePosition | None, title: str
) -> list[Content]:
    """What both predict at the selected position, in words.

    Args:
        previous: the same position at the previous evaluation.
        title: the expert's title.
    """
    student, expert = top_tokens(position)
    if expert is None:
        verdict = Content.styled(f"no target from {title} here: cross-entropy only", MUTED)
    elif student == expert:
        verdict = Content.assemble(("= ", "$text-success bold"), "both predict ", _quoted(student))
    else:
        verdict = Content.assemble(
            ("≠ ", "$text-error bold"),
            ("the student predicts ", ""),
            _quoted(student),
            (f", {title} ", ""),
            _quoted(expert),
        )
    follows = position.tokens[position.follows]
    kl = NONE if position.kl is None else f"{position.kl:.2f} nats"
    if position.kl is not None and previous is not None and previous.kl is not None:
        kl += f" (was {previous.kl:.2f})"
    return [
        verdict,
        Content.assemble(
            ("actual next token ", MUTED),
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
    return (f"“{visible(text)}”" if text is not None else NONE, "bold")


def overall_line(reading: ProbeRead, previous: ProbeRead | None) -> Content:
    """Agreement and mean KL over the sentence."""
    known = [agreed for p in reading.positions if (agreed := agrees(p)) is not None]
    kls = [p.kl for p in reading.positions if p.kl is not None]
    text = f"agree at {sum(known)} of {len(known)} positions"
    text += f" · mean KL {sum(kls) / len(kls):.2f}" if kls else ""
    if previous is not None and (before := [p.kl for p in previous.positions if p.kl is not None]):
        text += f", was {sum(before) / len(before):.2f} at step {previous.step:,}"
    return Content.styled(text, MUTED)


def heading_line(title: str, width: int) -> Content:
    """The titles above the bars: student left, expert right."""
    gap = " " * max(2, width - len("student") - len(title))
    return Content.assemble(("student", "$primary bold"), gap, (title, "$accent bold"))
