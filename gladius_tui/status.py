"""Format the output of `status`, `models` and `dashboard` as lines of text."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import HardwareRead, describe_texts
from engine.experts.registry import ExpertSpec, ExpertStatus
from engine.foreign_text import shown, shown_values
from engine.run.state import RunState
from gladius_tui.format import MILESTONES, NONE, bar, duration, number, percent, size, sparkline

if TYPE_CHECKING:  # rollup imports sqlite3, which `status` does not need
    from engine.run.rollup import Column
    from engine.run.view import RunView

MARKS = {"ready": "✓ Ready", "partial": "◐ Partial", "missing": "○ Missing"}


def _row(label: str, text: str) -> str:
    return f"{shown(label):<12} {shown(text)}"


def status_lines(
    state: RunState, experts: Mapping[str, ExpertStatus], now: float | None = None
) -> list[str]:
    """The state of the training run in a dozen lines; `now` is Unix time."""
    now = time.time() if now is None else now
    pid = f" (pid {state.pid})" if state.pid is not None else ""
    lines = [_row("status", f"{state_words(state)}{pid}")]
    if state.work and state.pid is not None:
        lines.append(_row("", state.work))
    if state.last_error:
        lines.append(_row("", state.last_error))
    for warning in state.warnings:
        wrapped = textwrap.wrap(warning.text, 86, break_on_hyphens=False)
        lines += [_row("" if n else "warning", line) for n, line in enumerate(wrapped)]
    if state.status != "not_started":
        lines += _run_lines(state, now)
    lines.append(_row("hardware", _hardware(state)))
    lines.append(_row("experts", _experts(state, experts)))
    lines.append(_row("checkpoint", _checkpoint(state, now)))
    return lines


def state_words(state: RunState) -> str:
    """The state in the words of the app."""
    if state.activity:
        return state.activity
    if state.status == "stopped" and state.last_checkpoint_step is not None:
        return f"stopped (resumable from step {state.last_checkpoint_step:,})"
    return "finished" if state.status == "completed" else state.status


def _run_lines(state: RunState, now: float) -> list[str]:
    lines = [_row("preset", state.preset)] if state.preset else []
    name = f"  {state.phase_name}" if state.phase_name else ""
    lines.append(_row("phase", f"{state.phase}/{state.phases}{name}"))
    lines.append(_row("expert", state.current_expert or NONE))
    lines.append(_row("step", f"{state.step:,}"))
    loss = number(state.loss, "{:.4f}")
    if state.bits_per_byte is not None:
        loss += f"  ·  {state.bits_per_byte:.3f} bits/byte held out"
    lines.append(_row("loss", loss))
    share = state.current_params / state.target_params if state.target_params else 0.0
    parameters = f"{state.current_params:,} of {state.target_params:,} ({share:.0%})"
    lines.append(_row("parameters", parameters))
    lines.append(_row("tokens", f"{state.tokens_seen:,}"))
    tables = [describe_texts(table).removeprefix("texts: ") for table in state.texts]
    lines += [_row("" if row else "texts", text) for row, text in enumerate(tables)]
    lines.append(_row("hours", f"{state.training_hours:.2f}"))
    if state.started_at is not None:
        lines.append(_row("started", f"{duration(now - state.started_at)} ago"))
    return lines


def _checkpoint(state: RunState, now: float) -> str:
    if state.last_checkpoint is None:
        return "none"
    age = duration(now - (state.last_checkpoint_at or now))
    return f"step {state.last_checkpoint_step or 0:,}, {age} ago: {state.last_checkpoint}"


def _hardware(state: RunState) -> str:
    if state.hardware is not None and state.pid is not None:
        return hardware_text(state.hardware)
    # No job is running: only what can be read quickly, without loading a library.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = Path("/proc/driver/nvidia/gpus")
    cuda = f" · CUDA {len(list(gpus.iterdir()))} GPUs" if gpus.is_dir() else ""
    return f"CPU {os.cpu_count()} threads · RAM {size(memory)}{cuda}"


def hardware_text(reading: HardwareRead) -> str:
    """A hardware reading in one line."""
    parts = [
        f"CPU {reading.cpu_percent:.0f}%",
        f"RAM {size(reading.ram_used)} of {size(reading.ram_total)}",
        f"disk {size(reading.disk_free)} free",
    ]
    for gpu in reading.gpus:
        utilisation = "" if gpu.percent is None else f" {gpu.percent:.0f}%"
        memory = f"{size(gpu.used_bytes)} of {size(gpu.total_bytes)}"
        parts.append(f"CUDA {gpu.index} {gpu.name}{utilisation} {memory}")
    return " · ".join(parts)


def _experts(state: RunState, experts: Mapping[str, ExpertStatus]) -> str:
    """In a run: ✓ phase done, ◆ current phase, ○ to come. Without a run: which are downloaded."""
    planned = [phase.expert for phase in state.plan if phase.expert]
    if not planned:
        return "  ".join(f"{MARKS[status.state][0]} {name}" for name, status in experts.items())

    def mark(name: str) -> str:
        if name in state.experts_completed:
            return "✓"
        return "◆" if name == state.current_expert else "○"

    return "  ".join(f"{mark(name)} {name}" for name in planned)


def models_lines(specs: Sequence[ExpertSpec], statuses: Mapping[str, ExpertStatus]) -> list[str]:
    """The experts as a table, with totals."""
    header = ("model", "repository", "size", "weight", "", "state")
    rows: list[tuple[str, ...]] = [header]
    for spec in map(shown_values, specs):
        status = statuses[spec.name]
        state = MARKS[status.state]
        if status.state != "ready":
            state += f": {shown(_remedy(spec, status))}"
        rows.append(
            (
                spec.name,
                spec.repo,
                size(status.expected_bytes) if status.expected_bytes else NONE,
                f"{spec.weight:g}",
                ("required" if spec.required else "optional") + (", gated" if spec.gated else ""),
                state,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    ready = sum(status.state == "ready" for status in statuses.values())
    present = sum(status.present_bytes for status in statuses.values())
    lines.append(f"{ready} of {len(specs)} ready, {size(present)} on disk")
    return lines


def _remedy(spec: ExpertSpec, status: ExpertStatus) -> str:
    """What is missing of an expert, and the command or path that fixes it."""
    if spec.source in ("folder", "gguf"):
        return f"{status.detail}, at {spec.repo}"
    if status.unverified:
        return status.detail  # verify before anything is downloaded
    fetch = f"gladius_train download {spec.name}"
    return fetch if status.state == "missing" else f"{status.detail}; {fetch}"


def snapshot_lines(state: RunState, loss: Sequence[Column], view: RunView) -> list[str]:
    """What `dashboard` adds to `status`: parameter bar, loss curve, scores of each expert."""
    lines = []
    if state.target_params:
        share = state.current_params / state.target_params
        reached = [f"{name} ✓" for count, name in MILESTONES if state.current_params >= count]
        lines.append(_row("", "  ".join([bar(share), *reached])))
    curve = sparkline([column.last for column in loss])
    if curve.strip():
        known = [column for column in loss if column.count]
        first, last = known[0], known[-1]
        steps = f"steps {first.start:,} to {last.stop - 1:,}"
        lines.append(_row("loss", f"{first.first:.3f} {curve} {last.last:.3f}, {steps}"))
    for expert in view.experts.values():
        bits, kl = number(expert.bits_per_byte, "{:.3f}"), number(expert.kl, "{:.3f}")
        text = f"{bits} bits/byte  KL {kl}  agreement {percent(expert.agreement)}"
        lines.append(_row(expert.name, text))
    return lines


def capability_lines(view: RunView) -> list[str]:
    """Correct answers to held-out prompts by capability, of the student and of each expert."""
    lines: list[str] = []
    label = "capabilities"
    for row in view.capabilities.values():
        # A score is not broken in two: \0 takes the place of its space while the line is wrapped.
        scores = [f"{s.capability}\0{s.right}/{s.asked}" for s in row.scores]
        text = f"{row.who}: {' · '.join(scores)}"
        for line in textwrap.wrap(text, 66, break_on_hyphens=False):
            lines.append(_row(label, line.replace("\0", " ")))
            label = ""
    return lines
