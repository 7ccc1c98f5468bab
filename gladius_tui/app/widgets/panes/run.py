"""The Run pane: phase, step, progress, loss, speed, time left, checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.events import Progress
from engine.run.view import RunView, resume_text, state_words
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
from gladius_tui.format import NONE, duration, number, percent, short_size, time_ago

_SIGNS = {
    "preparing": ("◌", "$accent"),
    "training": ("●", "$text-success"),
    "paused": ("‖", "$text-warning"),
    "stopping": ("○", "$text-warning"),
    "restarting": ("!", "$text-warning"),
    "stalled": ("!", "$text-error"),
    "stopped": ("!", "$text-error"),
    "completed": ("✓", "$text-success"),
    "ended": ("■", "$text-warning"),
    "failed": ("✗", "$text-error"),
}
_TWO_COLUMNS_WIDTH = 64
_NOT_YET = "not yet"
_TIME_LEFT = 3
"""Index of the time left among the figures."""


def status_part(run: RunView, width: int = 80) -> tuple[str, str]:
    """The status with its sign in at most `width` cells, and its style."""
    sign, style = _SIGNS.get(run.status or "", ("◌", "$accent"))
    words = state_words(run)
    if len(words) + 2 > width:
        words = words.partition(" (")[0]
    return f"{sign} {words}", style


def run_pane(run: RunView, width: int, now: float, mfu: float | None = None) -> Content:
    """The text of the pane; the figures stand in two columns if it is wide.

    Args:
        now: Unix time, for the age of the checkpoint.
        mfu: model FLOPs utilisation, 0 to 1; None if unknown.
    """
    status, style = status_part(run, width)
    phase = NONE if run.phase is None else f"{run.phase}/{run.phases}"
    lines: list[Line] = [left_right([(status, f"{style} bold")], [(run.preset, MUTED)], width)]
    if run.status in ("failed", "ended"):
        lines.append(
            Content.styled(_end_reason(run), "$text-error" if run.status == "failed" else MUTED)
        )
    if run.trouble:
        lines.append(Content.styled(printable(run.trouble), "$text-warning"))
    if run.phase is not None:
        room = max(0, width - 8 - len(phase))
        lines.append([("phase ", MUTED), (phase, STRONG), f"  {run.phase_name[:room]}"])
    lines += _work_lines(run, width)
    if run.last is None and run.step is None:
        return join_lines(lines)  # nothing is known yet
    figures = _figures(run, now, mfu)
    if run.status in ("completed", "ended", "failed"):
        del figures[_TIME_LEFT]
    if run.last is None:
        figures = [pair for pair in figures if _is_known(pair)]
    if width < _TWO_COLUMNS_WIDTH:
        return join_lines([*lines, *(left_right(left, right, width) for left, right in figures)])
    half = width // 2 - 2
    for n in range(0, len(figures), 2):
        pair = [left_right(left, right, half) for left, right in figures[n : n + 2]]
        lines.append(Content("    ").join(pair))
    return join_lines(lines)


def _is_known(pair: tuple[Sequence[Part], Sequence[Part]]) -> bool:
    left, right = pair
    text = Content.assemble(*left, *right).plain
    return NONE not in text and _NOT_YET not in text


def _work_lines(run: RunView, width: int) -> list[Line]:
    """What the run does at this moment: the task of the preparation, or its step."""
    task = next(iter(run.work.values()), None)
    if task is not None and run.status in ("preparing", "paused", "stopping"):
        return _task_lines(task, width)
    if run.status in (None, "restarting"):
        return [[("loading the training libraries"[:width], MUTED)]]
    if run.status == "preparing" and run.last is None and not run.step:
        return [[("loading models and text"[:width], MUTED)]]
    total = f" of {run.max_steps:,}" if run.max_steps else ""
    step = [("step ", MUTED), (number(run.step), STRONG), (total, MUTED)]
    lines: list[Line] = [step]
    if run.phase_progress is not None:
        share = [(percent(run.phase_progress), MUTED)]
        lines = [left_right(step, share, width), progress_bar(run.phase_progress, width)]
    if run.status == "preparing" and run.repeated:
        plural = "step is" if run.repeated == 1 else "steps are"
        text = f"resuming from step {run.step or 0:,}; {run.repeated:,} {plural} repeated"
        lines.append(Content.styled(text, MUTED))
    return lines


def _end_reason(run: RunView) -> str:
    """Why the run ended."""
    if run.ended is not None:
        return run.ended.reason
    return f"The runner was killed. Press r to {resume_text(run)}."


def _figures(
    run: RunView, now: float, mfu: float | None
) -> list[tuple[Sequence[Part], Sequence[Part]]]:
    """The figures in pairs, the most important first."""
    last, saved = run.last, run.resumable
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
            [("resumable ", MUTED), number(saved.step) if saved else _NOT_YET],
            [(age, MUTED)],
        ),
        (
            [("tokens ", MUTED), number(last.tokens_seen if last else None)],
            [("time ", MUTED), duration(last.training_seconds if last else None)],
        ),
    ]


def _task_lines(task: Progress, width: int) -> list[Line]:
    """A task's label, its bar, and its count, rate and time left."""
    fraction = task.done / task.total if task.total else None
    is_bytes = task.unit in ("B", "bytes")

    def amount(value: float) -> str:
        return short_size(value) if is_bytes else f"{value:,.0f}"

    unit = "" if is_bytes else f" {task.unit}".rstrip()
    count = amount(task.done) + (f" of {amount(task.total)}" if task.total else "")
    lines: list[Line] = [
        task.label[:width],
        progress_bar(fraction, width - 5, percent(fraction)) if task.total else "",
        Content.styled(f"{count}{unit}"[:width], MUTED),
    ]
    facts = [f"{amount(task.rate)}{unit}/s"] if task.rate else []
    facts += [f"eta {duration(task.eta)}"] if task.eta is not None else []
    lines.append(Content.styled("  ".join(facts)[:width], MUTED))
    return [line for line in lines if line != "" and str(line)]


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
