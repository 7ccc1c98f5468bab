"""Owns the text of `status`, `models` and the dashboard's snapshot: states in, lines out."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.events import CapabilitiesScored, EvalDone, HardwareRead
from engine.experts.registry import ExpertSpec, ExpertStatus
from engine.run.state import RunState
from gladius_tui.format import MILESTONES, bar, duration, size, sparkline

if TYPE_CHECKING:  # it imports sqlite3, for which `status` has no use
    from engine.run.rollup import Column

MARKS = {"ready": "✓ Ready", "partial": "◐ Partial", "missing": "○ Missing"}


def _row(label: str, text: str) -> str:
    return f"{label:<12} {text}"


def status_lines(
    state: RunState, experts: Mapping[str, ExpertStatus], now: float | None = None
) -> list[str]:
    """The run in a dozen lines; `now` is Unix time."""
    now = time.time() if now is None else now
    pid = f" (pid {state.pid})" if state.pid is not None else ""
    lines = [_row("status", f"{state.status}{pid}")]
    if state.last_error:
        lines.append(_row("", state.last_error))
    if state.status != "not_started":
        lines += _run_lines(state, now)
    lines.append(_row("hardware", _hardware(state)))
    lines.append(_row("experts", _experts(state, experts)))
    if state.last_checkpoint is None:
        lines.append(_row("checkpoint", "none"))
    else:
        age = duration(now - (state.last_checkpoint_at or now))
        lines.append(
            _row(
                "checkpoint",
                f"step {state.last_checkpoint_step or 0:,}, {age} ago: {state.last_checkpoint}",
            )
        )
    return lines


def _run_lines(state: RunState, now: float) -> list[str]:
    lines = [_row("preset", state.preset)] if state.preset else []
    name = f"  {state.phase_name}" if state.phase_name else ""
    lines.append(_row("phase", f"{state.phase}/{state.phases}{name}"))
    lines.append(_row("expert", state.current_expert or "–"))
    lines.append(_row("step", f"{state.step:,}"))
    loss = "–" if state.loss is None else f"{state.loss:.4f}"
    if state.bits_per_byte is not None:
        loss += f"  ·  {state.bits_per_byte:.3f} bits/byte held out"
    lines.append(_row("loss", loss))
    share = state.current_params / state.target_params if state.target_params else 0.0
    parameters = f"{state.current_params:,} of {state.target_params:,} ({share:.0%})"
    lines.append(_row("parameters", parameters))
    lines.append(_row("tokens", f"{state.tokens_seen:,}"))
    lines.append(_row("hours", f"{state.training_hours:.2f}"))
    if state.started_at is not None:
        lines.append(_row("started", f"{duration(now - state.started_at)} ago"))
    return lines


def _hardware(state: RunState) -> str:
    if state.hardware is not None and state.pid is not None:
        return hardware_text(state.hardware)
    # Nothing runs: what the system tells without a library, which would take time to load.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = Path("/proc/driver/nvidia/gpus")
    cuda = f" · CUDA {len(list(gpus.iterdir()))} GPUs" if gpus.is_dir() else ""
    return f"CPU {os.cpu_count()} threads · RAM {size(memory)}{cuda}"


def hardware_text(reading: HardwareRead) -> str:
    """A reading in a line."""
    parts = [
        f"CPU {reading.cpu_percent:.0f}%",
        f"RAM {size(reading.ram_used)} of {size(reading.ram_total)}",
        f"disk {size(reading.disk_free)} free",
    ]
    for gpu in reading.gpus:
        percent = "" if gpu.percent is None else f" {gpu.percent:.0f}%"
        memory = f"{size(gpu.used_bytes)} of {size(gpu.total_bytes)}"
        parts.append(f"CUDA {gpu.index} {gpu.name}{percent} {memory}")
    return " · ".join(parts)


def _experts(state: RunState, experts: Mapping[str, ExpertStatus]) -> str:
    """In a run: ✓ learnt from, ◆ now, ○ to come. Without one: what lies here."""
    planned = [phase.expert for phase in state.plan if phase.expert]
    if not planned:
        return "  ".join(f"{MARKS[status.state][0]} {name}" for name, status in experts.items())

    def mark(name: str) -> str:
        if name in state.experts_completed:
            return "✓"
        return "◆" if name == state.current_expert else "○"

    return "  ".join(f"{mark(name)} {name}" for name in planned)


def _how_to_mend(spec: ExpertSpec, status: ExpertStatus) -> str:
    """What of an expert is lacking, and the command or the place that helps."""
    if spec.source in ("folder", "gguf"):
        return f"{status.detail}, at {spec.repo}"
    if status.unverified:
        return status.detail  # nothing is to be fetched before that has been said
    fetch = f"gladius_train download {spec.name}"
    return fetch if status.state == "missing" else f"{status.detail}; {fetch}"


def models_lines(specs: Sequence[ExpertSpec], statuses: Mapping[str, ExpertStatus]) -> list[str]:
    """The experts as a table, with totals."""
    header = ("model", "repository", "size", "weight", "", "state")
    rows: list[tuple[str, ...]] = [header]
    for spec in specs:
        status = statuses[spec.name]
        state = MARKS[status.state]
        if status.state != "ready":
            state += f": {_how_to_mend(spec, status)}"
        rows.append(
            (
                spec.name,
                spec.repo,
                size(status.expected_bytes) if status.expected_bytes else "–",
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
    lines.append(f"{ready} of {len(specs)} ready, {size(present)} here")
    return lines


def snapshot_lines(
    state: RunState, loss: Sequence[Column], evaluation: EvalDone | None
) -> list[str]:
    """What the dashboard adds to the status: parameters, loss curve, how each expert is learnt."""
    lines = []
    if state.target_params:
        share = state.current_params / state.target_params
        reached = [f"{name} ✓" for count, name in MILESTONES if state.current_params >= count]
        lines.append(_row("", "  ".join([bar(share), *reached])))
    curve = sparkline([column.last for column in loss])
    if curve.strip():
        known = [column for column in loss if column.count]
        lines.append(
            _row(
                "loss",
                f"{known[0].first:.3f} {curve} {known[-1].last:.3f}, steps "
                f"{known[0].start:,} to {known[-1].stop - 1:,}",
            )
        )
    for score in evaluation.scores if evaluation is not None else ():
        kl = "–" if score.kl is None else f"{score.kl:.3f}"
        agreement = "–" if score.agreement is None else f"{score.agreement:.0%}"
        lines.append(
            _row(
                score.expert, f"{score.bits_per_byte:.3f} bits/byte  KL {kl}  agreement {agreement}"
            )
        )
    return lines


def abilities_lines(rows: Sequence[CapabilitiesScored]) -> list[str]:
    """Held-out prompts that student and experts answered rightly; of each who the last row."""
    lines: list[str] = []
    for row in {row.who: row for row in rows}.values():
        scores = [f"{s.capability}\0{s.right}/{s.asked}" for s in row.scores]
        label = f"{row.who} can"
        for line in textwrap.wrap(" · ".join(scores), 66, break_on_hyphens=False):
            lines.append(_row(label, line.replace("\0", " ")))
            label = ""
    return lines
