"""The Parameters pane: the size and shape of the student."""

from __future__ import annotations

from typing import Any

from textual.content import Content

from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import (
    MUTED,
    STRONG,
    Line,
    join_lines,
    left_right,
    progress_bar,
)
from gladius_tui.format import MILESTONES, NONE, number, percent


def parameters_pane(run: RunView, width: int) -> Content:
    """The text of the pane."""
    student = run.config.get("student", {})
    fraction = run.current_params / run.target_params if run.target_params else None
    target = number(run.target_params or None)
    layers, hidden_size = student.get("num_hidden_layers"), student.get("hidden_size")
    heads, kv_heads = student.get("num_attention_heads"), student.get("num_key_value_heads")
    vocab_size, context = student.get("vocab_size"), student.get("max_position_embeddings")
    device = " ".join(word for word in (run.device, run.precision) if word) or NONE
    lines: list[Line] = [
        [(number(run.current_params or None), STRONG), (f" of {target}", MUTED)],
        left_right([progress_bar(fraction, width - 6)], [percent(fraction)], width),
        left_right(
            [("layers ", MUTED), number(layers, "{}")],
            [("embeddings ", MUTED), _millions(_embedding_parameters(student))],
            width,
        ),
        _milestones(run, width),
        left_right(
            [("hidden ", MUTED), number(hidden_size, "{:,}")],
            [("heads ", MUTED), f"{number(heads, '{}')}/{number(kv_heads, '{}')}"],
            width,
        ),
        left_right(
            [("vocab ", MUTED), number(vocab_size)], [("context ", MUTED), number(context)], width
        ),
        [("on ", MUTED), device],
    ]
    return join_lines(lines)


def _milestones(run: RunView, width: int) -> Line:
    reached = [f"{name} {'✓' if run.current_params >= n else '○'}" for n, name in MILESTONES]
    if width < 34:
        reached = [*reached[1:3], reached[-1]]
    label = "milestones " if width < 34 or width >= 46 else ""
    return [(label, MUTED), " ".join(reached)]


def _embedding_parameters(student: dict[str, Any]) -> int | None:
    vocab_size, hidden_size = student.get("vocab_size"), student.get("hidden_size")
    if vocab_size is None or hidden_size is None:
        return None
    return vocab_size * hidden_size * (1 if student.get("tie_word_embeddings", True) else 2)


def _millions(count: float | None) -> str:
    if count is None:
        return NONE
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
