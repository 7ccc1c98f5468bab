"""The Run pane: phase, step, progress, loss, speed, time left, checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.checkpoint.layout import is_full_checkpoint
from engine.events import Progress
from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import (
    MUTED,
    STRONG,
    Line,
    Part,
    join_lines,
    left_right,
    printable,
    progress_bar,
)
from gladius_tui.format import NONE, duration, number, percent, time_ago

_STATUS = {
    "preparing": ("◌", "preparing", "$accent"),
    "training": ("●", "training", "$text-success"),
    "paused": ("‖", "paused", "$text-warning"),
    "stalled": ("!", "stalled", "$text-error"),
    "stopped": ("!", "suspended", "$text-error"),
    "completed": ("✓", "finished", "$text-success"),
    "ended": ("■", "stopped", "$text-warning"),
    "failed": ("✗", "failed", "$text-error"),
}
_TWO_COLUMNS_WIDTH = 64
_TIME_LEFT = 3
"""Index of the time left among the figures."""


def status_part(run: RunView, width: int = 80) -> tuple[str, str]:
    """The status with its sign in at most `width` cells, and its style."""
    sign, word, style = _STATUS.get(run.status or "", ("◌", "preparing", "$accent"))
    step = resumable_step(run)
    if run.status == "ended" and step is not None:
        full = f"{word} (resumable from step {step:,})"
        word = full if len(full) + 2 <= width else word
    return f"{sign} {word}", style


def resumable_step(run: RunView) -> int | None:
    """The step that `resume` starts from; None if it is not known."""
    saved = run.checkpoint
    # Copies of the best weights are no full checkpoints.
    full = saved is not None and is_full_checkpoint(saved.path)
    return saved.step if saved is not None and full else None


def run_pane(run: RunView, width: int, now: float, mfu: float | None = None) -> Content:
    """The text of the pane; the figures stand in two columns if it is wide.

    Args:
        now: Unix time, for the age of the checkpoint.
        mfu: model FLOPs utilisation, 0 to 1; None if unknown.
    """
    status, style = status_part(run, width)
    phase = NONE if run.phase is None else f"{run.phase}/{run.phases}"
    lines: list[Line] = [left_right([(status, f"{style} bold")], [(run.preset, MUTED)], width)]
    if run.status is None:
        lines.append([("loading the training libraries"[:width], MUTED)])
    if run.status in ("failed", "ended"):
        lines.append(
            Content.styled(_end_reason(run), "$text-error" if run.status == "failed" else MUTED)
        )
    if run.trouble:
        lines.append(Content.styled(printable(run.trouble), "$text-warning"))
    room = max(0, width - 8 - len(phase))
    lines.append([("phase ", MUTED), (phase, STRONG), f"  {run.phase_name[:room]}"])
    task = next(iter(run.work.values()), None)
    if task is not None and run.status in ("preparing", "paused"):
        lines += _task_lines(task, width)
    else:
        total = f" of {run.max_steps:,}" if run.max_steps else ""
        step = [("step ", MUTED), (number(run.step), STRONG), (total, MUTED)]
        lines.append(left_right(step, [(percent(run.phase_progress), MUTED)], width))
        lines.append(progress_bar(run.phase_progress, width))
    figures = _figures(run, now, mfu)
    if run.status in ("completed", "ended", "failed"):
        del figures[_TIME_LEFT]
    if width < _TWO_COLUMNS_WIDTH:
        return join_lines([*lines, *(left_right(left, right, width) for left, right in figures)])
    half = width // 2 - 2
    for n in range(0, len(figures), 2):
        pair = [left_right(left, right, half) for left, right in figures[n : n + 2]]
        lines.append(Content("    ").join(pair))
    return join_lines(lines)


def _end_reason(run: RunView) -> str:
    """Why the run ended."""
    if run.ended is not None:
        return run.ended.reason
    step = resumable_step(run)
    resume = "resume" if step is None else f"resume from step {step:,}"
    return f"The runner was killed. Press r to {resume}."


def _figures(
    run: RunView, now: float, mfu: float | None
) -> list[tuple[Sequence[Part], Sequence[Part]]]:
    """The figures in pairs, the most important first."""
    last, saved = run.last, run.checkpoint
    lr = number(last.lr if last else None, "{:.1e}").replace("e-0", "e-")
    remaining = last if run.alive else None
    age = "" if saved is None else time_ago(max(0.0, now - saved.time))
    return [
        (
            [("loss ", MUTED), (number(last.loss if last else None, "{:.3f}"), STRONG)],
            [("lr ", MUTED), lr],
        ),
        (
            [("held-out ", MUTED), (number(run.bits_per_byte, "{:.3f}"), STRONG)],
            [("best ", MUTED), number(run.best_bits, "{:.3f}")],
        ),
        (
            [(number(last.tokens_per_sec if last else None), STRONG), (" tok/s", MUTED)],
            # Utilisation is known for few devices; the time of a step for all.
            [("MFU ", MUTED), percent(mfu)]
            if mfu is not None or last is None
            else [f"{last.step_seconds:.3g}", (" s/step", MUTED)],
        ),
        (
            [("ETA phase ", MUTED), duration(remaining.phase_eta if remaining else None)],
            [("all ", MUTED), duration(remaining.run_eta if remaining else None)],
        ),
        (
            [("checkpoint ", MUTED), number(saved.step if saved else None)],
            [(age, MUTED)],
        ),
        (
            [("tokens ", MUTED), number(last.tokens_seen if last else None)],
            [("time ", MUTED), duration(last.training_seconds if last else None)],
        ),
    ]


def _task_lines(task: Progress, width: int) -> list[Line]:
    fraction = task.done / task.total if task.total else None
    suffix = percent(fraction) + (f"  {duration(task.eta)}" if task.eta is not None else "")
    return [task.label[:width], progress_bar(fraction, width - len(suffix) - 1, suffix)]


def summary_line(run: RunView | None) -> str:
    """The run in one line, for the smallest terminals."""
    if run is None:
        return "no run yet: press 3 to start one"
    last = run.last
    parts = [status_part(run)[0]]
    if run.phase is not None:
        parts.append(f"phase {run.phase}/{run.phases}")
    parts.append(f"step {number(run.step)}")
    parts.append(f"loss {number(last.loss if last else None, '{:.3f}')}")
    if last is not None and last.run_eta is not None and run.alive:
        parts.append(f"eta {duration(last.run_eta)}")
    return " · ".join(parts)
