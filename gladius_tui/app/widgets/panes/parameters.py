"""The Parameters pane: the size of the student, and how much each of its layers changes."""

from __future__ import annotations

from typing import Any

from textual.content import Content

from engine.events import LayerStats
from engine.run.view import RunView
from gladius_tui.app.model.layers import Cell, extremes, layer_cells, strip_of
from gladius_tui.app.widgets.panes.text import (
    MUTED,
    Line,
    join_lines,
    left_right,
    progress_bar,
)
from gladius_tui.format import MILESTONES, NONE, axis_number, number, percent

_TITLES = {"update": "update / weight", "moved": "moved / weight"}
_LABEL = 6
"""Columns of a strip's label."""
_SHADES = tuple(f"$accent {percentage}%" for percentage in range(30, 101, 10))
"""Colours of the eight steps."""
_TABLE_HEIGHT, _TABLE_WIDTH = 16, 46
"""Rows and columns from which on the layers are listed one by one."""


def parameters_pane(run: RunView, width: int, height: int = 7) -> Content:
    """The text of the pane: the strips of layers, and a table of them if it is high enough."""
    lines = _size_lines(run, width)
    if run.layers is None:
        return join_lines([*lines, *_shape_lines(run, width)])
    stats = run.layers
    table = height >= _TABLE_HEIGHT + len(lines) and width >= _TABLE_WIDTH
    for what in _TITLES:
        lines += _strips(stats, what, width)
    if table:
        return join_lines([*lines, "", *_table(stats, width)])
    return join_lines([*lines, *_shape_lines(run, width)][: max(height, 1)])


def _size_lines(run: RunView, width: int) -> list[Line]:
    """The number of parameters: one line, and a bar while the student is smaller than planned."""
    device = " ".join(word for word in (run.device, run.precision) if word) or NONE
    count = number(run.current_params or None)
    if not run.target_params or run.current_params >= run.target_params:
        return [left_right([(count, "bold"), (" parameters", MUTED)], [(device, MUTED)], width)]
    if not run.current_params:
        planned = number(run.target_params)
        return [left_right([(planned, "bold"), (" planned", MUTED)], [(device, MUTED)], width)]
    fraction = run.current_params / run.target_params
    lines: list[Line] = [
        [(count, "bold"), (f" of {number(run.target_params)}", MUTED)],
        progress_bar(fraction, width - 6, percent(fraction)),
    ]
    reachable = [(n, name) for n, name in MILESTONES if n <= run.target_params]
    if reachable:
        marks = " ".join(
            f"{name} {'✓' if run.current_params >= n else '○'}" for n, name in reachable
        )
        lines.append(Content.styled(marks[:width], MUTED))
    return lines


def _strips(stats: LayerStats, what: str, width: int) -> list[Line]:
    """The strips of one measure: attention and MLP, embeddings and head at their ends, and the
    smallest and largest layer by name."""
    rows = layer_cells(stats, what)
    everything = [cell for cells in rows.values() for cell in cells]
    found = extremes(everything)
    if found is None:
        return [Content.styled(f"{_TITLES[what]}: not finite", "$text-error")]
    low, high = found
    interval = f" of {stats.interval} steps" if what == "update" else ""
    lines: list[Line] = [Content.styled(f"{_TITLES[what]}{interval}"[:width], MUTED)]
    blocks = [(label, rows[label]) for label in ("attn", "mlp") if label in rows]
    ends = [(label, rows[label][0]) for label in ("embed", "head") if label in rows]
    for n, (label, cells) in enumerate(blocks):
        end = ends[n] if n < len(ends) else None
        room = width - _LABEL - (len(end[0]) + 4 if end else 0)
        parts = [(f"{label:<{_LABEL}}", MUTED), *map(_cell_part, strip_of(cells, room))]
        if end is not None:
            parts += [(f"  {end[0]} ", MUTED), _cell_part(end[1])]
        lines.append(parts)
    lines.append(_range_line(low, high, width))
    odd = [cell for cell in everything if not 0 <= cell.level <= 7]
    if odd:
        lines.append(_odd_line(odd, width))
    return lines


def _range_line(low: Cell, high: Cell, width: int) -> Content:
    parts = Content.assemble(
        axis_number(low.value or 0.0),
        (f" {low.name} … ", MUTED),
        axis_number(high.value or 0.0),
        (f" {high.name}", MUTED),
    )
    return parts.truncate(width, ellipsis=True) if parts.cell_length > width else parts


def _odd_line(cells: list[Cell], width: int) -> Content:
    """The layers that hardly change, or far more than the others."""
    dead = [cell.name for cell in cells if cell.level < 0]
    exploding = [cell.name for cell in cells if cell.level > 7]
    texts = [f"! far above the others: {', '.join(exploding)}"] if exploding else []
    texts += [f"· hardly changes: {', '.join(dead)}"] if dead else []
    return Content.styled("  ".join(texts)[:width], "$text-error" if exploding else "$text-warning")


def _cell_part(cell: Cell) -> tuple[str, str]:
    if 0 <= cell.level < len(_SHADES):
        return cell.sign, _SHADES[cell.level]
    return cell.sign, "$text-warning bold" if cell.level < 0 else "$text-error bold"


def _table(stats: LayerStats, width: int) -> list[Line]:
    """All layers, one a line: both measures of attention and MLP."""
    update, moved = layer_cells(stats, "update"), layer_cells(stats, "moved")
    head = f"{'':10}" + "".join(f"{title:>18}" for title in ("update/weight", "moved/weight"))
    lines: list[Line] = [Content.styled(head[:width], MUTED)]
    for label, cells in update.items():
        for cell, far in zip(cells, moved[label], strict=True):
            parts: list[Any] = [(f"{cell.name:<10}", MUTED)]
            for shown in (cell, far):
                text = NONE if shown.value is None else axis_number(shown.value)
                parts += [f"{text:>16} ", _cell_part(shown)]
            lines.append(parts)
    return lines


def _shape_lines(run: RunView, width: int) -> list[Line]:
    """The shape of the student."""
    student = run.config.get("student", {})
    layers, hidden_size = student.get("num_hidden_layers"), student.get("hidden_size")
    heads, kv_heads = student.get("num_attention_heads"), student.get("num_key_value_heads")
    vocab_size, context = student.get("vocab_size"), student.get("max_position_embeddings")
    return [
        left_right(
            [("layers ", MUTED), number(layers, "{}")],
            [("embeddings ", MUTED), _millions(_embedding_parameters(student))],
            width,
        ),
        left_right(
            [("hidden ", MUTED), number(hidden_size, "{:,}")],
            [("heads ", MUTED), f"{number(heads, '{}')}/{number(kv_heads, '{}')}"],
            width,
        ),
        left_right(
            [("vocab ", MUTED), number(vocab_size)], [("context ", MUTED), number(context)], width
        ),
    ]


def _embedding_parameters(student: dict[str, Any]) -> int | None:
    vocab_size, hidden_size = student.get("vocab_size"), student.get("hidden_size")
    if vocab_size is None or hidden_size is None:
        return None
    return vocab_size * hidden_size * (1 if student.get("tie_word_embeddings", True) else 2)


def _millions(count: float | None) -> str:
    if count is None:
        return NONE
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
