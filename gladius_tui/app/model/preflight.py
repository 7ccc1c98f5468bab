"""Check a run before it starts: problems of its config, its size, and whether this machine has
enough memory and disk. Nothing is written, and torch is not imported.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from engine.budget import token_budget
from engine.config import RunConfig, load_config
from engine.errors import GladiusError
from engine.events import GpuReading
from engine.experts.registry import ExpertSpec, expert_status, load_experts
from engine.hardware import available_ram, disk_free, has_bf16, total_ram
from engine.memory_plan import cards_text, run_memory
from engine.preflight import check_experts, launch_training, stored_config
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
    """About the run of the fields that are valid."""
    problems: tuple[str, ...] = ()
    """What keeps the run from starting; each with its remedy."""
    bad_fields: tuple[str, ...] = ()
    """Names of the form's fields that cause them."""
    fetch: tuple[str, ...] = ()
    """Experts whose download is all that is missing."""
    fetch_bytes: int = 0
    ready: tuple[str, ...] = ()
    """The run's experts that are on this machine."""
    stored: tuple[int, str] | None = None
    """Step and preset of the unfinished run that `resume` would continue."""


def assess(ws: Workspace, form: Form, gpus: tuple[GpuReading, ...]) -> Assessment:
    """Check a form, each field alone: one mistake does not blank what the others say.

    Reads the text files of the run, which takes a while if they are long.
    """
    stored = stored_config(ws)
    finished = stored is not None and read_state(ws).status == "completed"
    resumable = None if stored is None or finished else (stored[0], stored[1].preset)
    try:
        judged = judge(ws, form)
    except (GladiusError, ValueError) as error:  # such as an invalid gladius.toml
        return Assessment(form=form, problems=_problems(str(error)), stored=resumable)
    config, problems = judged.config, judged.problems
    notes: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()
    if not problems:
        try:
            notes = launch_training(ws, config).notes
        except GladiusError as error:
            problems = _problems(str(error))
            fetch = _missing_downloads(ws, config, str(error))
    specs = load_experts(ws)
    states = {name: expert_status(ws, specs[name]) for name in config.experts.names}
    return Assessment(
        form=form,
        experts=tuple(config.experts.names),
        lines=(
            *_student(config),
            *_length(config),
            *_machine(ws, config, specs, gpus),
            *(Line("note", note, "note") for note in (*judged.notes, *notes)),
        ),
        problems=problems,
        bad_fields=judged.bad_fields,
        fetch=fetch,
        fetch_bytes=sum(specs[name].size_bytes for name in fetch),
        ready=tuple(name for name, status in states.items() if status.state == "ready"),
        stored=resumable,
    )


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """A form's config, or that of its valid fields, with what is wrong with the others."""

    config: RunConfig
    problems: tuple[str, ...] = ()
    bad_fields: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """One line for each former field name."""


def judge(ws: Workspace, form: Form) -> Judged:
    """The config of a form. A field that makes it invalid is left out and reported.

    Raises GladiusError where the preset alone gives no config.
    """
    notes: list[str] = []
    try:
        return Judged(config=_config(ws, form, notes), notes=tuple(notes))
    except (GladiusError, ValueError) as error:
        whole = _problems(str(error))
    good = Form(preset=form.preset)
    config = _config(ws, good, [])
    problems: list[str] = []
    bad: list[str] = []
    for name, changed in _single_changes(form):
        candidate = msgspec.structs.replace(good, **{name: changed(good)})
        try:
            config = _config(ws, candidate, [])
        except (GladiusError, ValueError) as error:
            problems += _problems(str(error))
            bad.append(name)
        else:
            good = candidate
    problems += [problem for problem in whole if not bad]  # each is valid, all together are not
    return Judged(
        config=config,
        problems=tuple(dict.fromkeys(problems)),
        bad_fields=tuple(dict.fromkeys(bad)),
    )


def _single_changes(form: Form) -> Iterator[tuple[str, Callable[[Form], Any]]]:
    """The fields of a form one at a time, each override of its own: a name, and the new value
    after those that were accepted so far."""
    for name in ("file", "experts", "hours", "data", "device"):
        if getattr(form, name) != getattr(Form(), name):
            yield name, lambda _, name=name: getattr(form, name)
    try:
        words = form.words_of("overrides")
    except ValueError:
        yield "overrides", lambda _: form.overrides
        return
    for word in words:
        yield "overrides", lambda good, word=word: f"{good.overrides} {shlex.quote(word)}".strip()


def _config(ws: Workspace, form: Form, notes: list[str]) -> RunConfig:
    return load_config(
        ws,
        preset=form.preset,
        file=form.file.strip() or None,
        overrides=form.all_overrides(),
        experts=form.experts,
        data=form.data_paths(),
        hours=form.max_hours(),
        notes=notes,
    )


def _missing_downloads(ws: Workspace, config: RunConfig, problem: str) -> tuple[str, ...]:
    """The experts to download, if their absence is the problem and nothing else is missing."""
    try:
        check_experts(ws, config)
    except GladiusError as error:
        if str(error) != problem:
            return ()
    else:
        return ()
    specs = load_experts(ws)
    names = [name for name in config.experts.names if name in specs]
    owner = config.student.tokenizer
    names += [owner] if owner in specs and owner not in names else []
    missing = [name for name in names if expert_status(ws, specs[name]).state != "ready"]
    downloadable = all(specs[name].source in ("hub", "wheel") for name in missing)
    return tuple(missing) if downloadable else ()


def _problems(text: str) -> tuple[str, ...]:
    """The problems in a config's error message: one a line, after a heading."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(lines[1:] if len(lines) > 1 else (line.removeprefix("config: ") for line in lines))


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
