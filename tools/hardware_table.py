"""Print the tables of docs/hardware.md, with the formulas that `doctor` and the trainer use.

`python tools/hardware_table.py --write` updates the file; a test checks that it is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.config import RunConfig, TargetsConfig, load_config
from engine.experts.registry import ExpertSpec, load_experts
from engine.memory_plan import CARDS, run_memory, settings_that_fit, verdict
from engine.sizing import GIB, checkpoint_bytes, disk_need, parameter_count
from engine.workspace import Workspace

DOCUMENT = Path(__file__).parents[1] / "docs" / "hardware.md"
BEGIN, END = "<!-- begin: tools/hardware_table.py -->", "<!-- end -->"


def tables() -> str:
    """All tables, as Markdown: sizes, bytes by part, and GPUs."""
    return "\n".join([*_sizes(), "", *_parts(), "", *_cards()]) + "\n"


def _sizes() -> Iterator[str]:
    """Parameters, memory on a GPU and disk of each preset."""
    yield (
        "| preset | parameters | GPU memory to train | with activation checkpointing | "
        "a checkpoint | disk of a run | its experts |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, config, specs in _presets():
        memory = run_memory(config, specs, True, "cuda")
        figures = (
            memory.configured.total,
            memory.least.total,
            checkpoint_bytes(config.student),
            disk_need(config, 0).total,
            sum(spec.size_bytes for spec in specs),
        )
        parameters = f"{parameter_count(config.student).total:,}"
        yield f"| {name} | {parameters} | {' | '.join(map(_gib, figures))} |"


def _parts() -> Iterator[str]:
    """Bytes on a GPU by part, as each preset is configured."""
    presets = list(_presets())
    needs = [run_memory(config, specs, True, "cuda").configured for _, config, specs in presets]
    yield "| part, GiB | " + " | ".join(name for name, _, _ in presets) + " |"
    yield "| --- |" + " --- |" * len(presets)
    for row in zip(*(need.parts() for need in needs), strict=True):
        yield f"| {row[0][0]} | " + " | ".join(f"{count / GIB:.1f}" for _, count in row) + " |"
    yield "| total | " + " | ".join(f"{need.total / GIB:.1f}" for need in needs) + " |"


def _cards() -> Iterator[str]:
    """Which GPUs are large enough for each preset, and the settings that would fit."""
    presets = list(_presets())
    yield "| GPU | " + " | ".join(name for name, _, _ in presets) + " |"
    yield "| --- |" + " --- |" * len(presets)
    for card, memory in CARDS:
        cells = (_cell(config, specs, memory * GIB) for _, config, specs in presets)
        yield f"| {card} | {' | '.join(cells)} |"


def _cell(config: RunConfig, specs: list[ExpertSpec], free: float) -> str:
    found = verdict(run_memory(config, specs, True, "cuda"), free)
    if found != "does not fit":
        return found
    settings = settings_that_fit(config, specs, True, "cuda", free)
    if settings is None:
        return found
    return "with " + " ".join(f"`--set {setting}`" for setting in settings)


def _presets() -> Iterator[tuple[str, RunConfig, list[ExpertSpec]]]:
    """Every row of the tables: its name, config and experts."""
    for preset in ("nano", "1b"):
        for variant, config, specs in _variants(preset):
            yield f"`{preset}`{variant}", config, specs


def _variants(preset: str) -> Iterator[tuple[str, RunConfig, list[ExpertSpec]]]:
    """The preset with text scored before training and, where it streams text, with online scoring:
    (text for the table, config, experts)."""
    workspace = Workspace.find("/nonexistent")  # the built-in experts, without a gladius.toml
    known = load_experts(workspace)
    config = load_config(workspace, preset=preset)
    specs = [known[name] for name in config.experts.names]
    cached, online = (
        msgspec.structs.replace(config, targets=targets)
        for targets in (TargetsConfig(source="cached"), TargetsConfig(source="online"))
    )
    if preset == "1b":
        yield ", text scored before", cached, specs
        yield ", experts beside the student", online, specs
    else:
        yield "", cached, specs


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"


def written(text: str) -> str:
    """The document with updated tables."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}{END}{after}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables(), end="")
