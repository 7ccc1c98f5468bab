"""Check a run before it starts: problems of its config, its size, and whether this machine has
enough memory and disk. Nothing is written, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from engine.budget import token_budget
from engine.config import RunConfig, load_config
from engine.errors import GladiusError
from engine.events import GpuReading
from engine.experts.registry import ExpertSpec, expert_status, load_experts
from engine.hardware import available_ram, disk_free, has_bf16, total_ram
from engine.memory_plan import cards_text, run_memory
from engine.preflight import launch_training, stored_config
from engine.run.state import read_state
from engine.sizing import parameter_count
from engine.workspace import Workspace
from gladius_tui.app.model.form import Form
from gladius_tui.format import size

if TYPE_CHECKING:
    from engine.doctor.check import Check


class Line(msgspec.Struct, frozen=True):
    """A line of the assessment."""

    label: str
    text: str
    verdict: str = ""
    """`ok`, `warn`, `bad`, `note`, or "" if there is nothing to judge."""


class Assessment(msgspec.Struct, frozen=True, kw_only=True):
    """The result of the checks."""

    form: Form
    experts: tuple[str, ...] = ()
    """Names, in the order of their phases."""
    lines: tuple[Line, ...] = ()
    problems: tuple[str, ...] = ()
    """What keeps the run from starting; each with its remedy."""
    stored: tuple[int, str] | None = None
    """Step and preset of the unfinished run that `resume` would continue."""


def assess(ws: Workspace, form: Form, gpus: tuple[GpuReading, ...]) -> Assessment:
    """Check a form. Reads the text files of the run, which takes a while if they are long."""
    stored = stored_config(ws)
    finished = stored is not None and read_state(ws).status == "completed"
    resumable = None if stored is None or finished else (stored[0], stored[1].preset)
    former_names: list[str] = []
    try:
        hours = form.max_hours()
        config = load_config(
            ws,
            preset=form.preset,
            file=form.file.strip() or None,
            overrides=form.all_overrides(),
            experts=form.experts,
            data=form.data_paths(),
            hours=hours,
            notes=former_names,
        )
    except (GladiusError, ValueError) as error:
        return Assessment(form=form, problems=_problems(str(error)), stored=resumable)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    try:
        notes = launch_training(ws, config).notes
    except GladiusError as error:
        problems = _problems(str(error))
    specs = load_experts(ws)
    return Assessment(
        form=form,
        experts=tuple(config.experts.names),
        lines=(
            *_student(config),
            *_length(config),
            *_machine(ws, config, specs, gpus),
            *(Line("note", note, "note") for note in (*former_names, *notes)),
        ),
        problems=problems,
        stored=resumable,
    )


def _problems(text: str) -> tuple[str, ...]:
    """The problems in a config's error message: one a line, after a heading."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(lines[1:] if len(lines) > 1 else lines)


def _student(config: RunConfig) -> Iterator[Line]:
    student = config.student
    count = parameter_count(student)
    yield Line("student", f"{count.total:,} parameters")
    yield Line(
        "",
        f"{student.num_hidden_layers} layers of {student.hidden_size}, "
        f"{student.vocab_size:,} tokens, context {student.max_position_embeddings:,}",
    )


def _length(config: RunConfig) -> Iterator[Line]:
    optimizer, schedule = config.optimizer, config.schedule
    tokens = optimizer.global_batch_size * optimizer.max_seq_len
    yield Line("step", f"{tokens:,} tokens, micro-batch {optimizer.micro_batch_size}")
    if schedule.max_steps is not None:
        yield Line("length", f"{schedule.max_steps:,} steps")
    elif schedule.hours is not None:
        yield Line("length", f"{schedule.hours:g} hours, including the final save")
    else:
        yield Line(
            "length", f"{schedule.expert_tokens:,} tokens per expert, then until it converges"
        )


def _machine(
    ws: Workspace, config: RunConfig, known: dict[str, ExpertSpec], gpus: tuple[GpuReading, ...]
) -> Iterator[Line]:
    """The checks of `doctor` that are fast enough to run while the user types."""
    from engine.doctor import machine, text

    specs = [known[name] for name in config.experts.names]
    states = {spec.name: expert_status(ws, spec) for spec in specs}
    on_gpu = bool(gpus) and config.device.device in ("auto", "cuda")
    precision = config.device.precision
    half = precision == "bf16" or (precision == "auto" and (on_gpu or has_bf16()))
    if on_gpu:
        total, free = gpus[0].total_bytes, gpus[0].total_bytes - gpus[0].used_bytes
    else:
        total, free = total_ram(), available_ram()
    yield from _check_lines(machine.check_gpu(gpus, "", config, specs))
    yield from _check_lines(
        machine.check_memory(
            config,
            specs,
            total=total,
            available=free,
            half=half,
            topic="gpu memory" if on_gpu else "memory",
        )
    )
    device = "cuda" if on_gpu else "cpu"
    for name, count in run_memory(config, specs, half, device).configured.parts():
        if count:
            yield Line("", f"{name} {size(count)}")
    yield Line("gpu sizes", cards_text(config, specs, half=True))
    budget = token_budget(config, specs)
    scored = text.scored_tokens(config, specs, budget)
    yield from _check_lines(machine.check_disk(config, states, disk_free(ws.root), scored))
    yield from _check_lines(text.check_text(budget, config))


def _check_lines(check: Check) -> Iterator[Line]:
    verdict = {"ok": "ok", "note": "note", "warn": "warn", "fail": "bad"}[check.status]
    yield Line(check.topic, check.figure, verdict)
    if check.remedy:
        yield Line("", f"→ {check.remedy}")
