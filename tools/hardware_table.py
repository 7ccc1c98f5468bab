"""Print the tables of docs/hardware.md, with the formulas that `doctor` and the trainer use.

`python tools/hardware_table.py --write` updates the file; a test checks that it is up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from engine.config import RunConfig, TargetsConfig, load_config
from engine.doctor.machine import memory_needs
from engine.experts.registry import ExpertSpec, load_experts
from engine.sizing import GIB, checkpoint_bytes, disk_need, parameter_count
from engine.workspace import Workspace

DOCUMENT = Path(__file__).parents[1] / "docs" / "hardware.md"
BEGIN, END = "<!-- begin: tools/hardware_table.py -->", "<!-- end -->"
CARDS = (("16 GB", 15.6), ("24 GB (RTX 4090)", 23.6), ("48 GB", 47.4), ("80 GB (A100, H100)", 79.1))
"""GPUs and their free memory in GiB."""


def tables() -> str:
    """Both tables, as Markdown."""
    lines = [
        "| preset | parameters | memory to train | with activation checkpointing | a checkpoint | "
        "disk of a run | its experts |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for preset in ("nano", "1b"):
        for variant, config, specs in _variants(preset):
            need, least = memory_needs(config, specs, True)
            name = f"`{preset}`{variant}"
            disk = disk_need(config, 0).total
            experts = sum(spec.size_bytes for spec in specs)
            figures = (need, least, checkpoint_bytes(config.student), disk, experts)
            parameters = f"{parameter_count(config.student).total:,}"
            lines.append(f"| {name} | {parameters} | {' | '.join(map(_gib, figures))} |")
    variants = list(_variants("1b"))
    lines += [
        "",
        "| GPU | " + " | ".join(f"`1b`{variant}" for variant, _, _ in variants) + " |",
        "| --- |" + " --- |" * len(variants),
    ]
    for card, memory in CARDS:
        needs = (memory_needs(config, specs, True) for _, config, specs in variants)
        cells = (_fits(memory * GIB, need, least) for need, least in needs)
        lines.append(f"| {card} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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


def _fits(memory: float, need: int, least: int) -> str:
    if need <= memory:
        return "fits"
    return "with activation checkpointing" if least <= memory else "does not fit"


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
