"""The experts and which of their files are on disk."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from textual.message import Message

from engine.workspace import Workspace, assets_dir

if TYPE_CHECKING:
    from engine.experts.registry import ExpertSpec, ExpertStatus

STATE_MARKS = {
    "ready": ("✓ Ready", "success"),
    "partial": ("◐ Partial", "warning"),
    "missing": ("○ Missing", "dim"),
}
"""Text and colour of an expert's state."""


STARTER_PRESET = "nano"
"""The preset that needs no GPU and no account."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The experts as they were found on disk."""

    specs: dict[str, ExpertSpec]
    statuses: dict[str, ExpertStatus]
    files: dict[str, list[tuple[str, int]]]
    """(name, bytes) of each file, by expert."""
    free: int
    """Free bytes of the disk."""
    starter: tuple[str, ...] = ()
    """The experts of the preset that a new user starts with."""


@dataclass(eq=False)
class InventoryRead(Message, bubble=False):
    """The inventory was read, or could not be (`error`)."""

    inventory: Inventory | None
    error: str = ""


def read_inventory(ws: Workspace) -> Inventory:
    """Look up all experts by file names and sizes. Raises GladiusError for an invalid
    gladius.toml."""
    from engine.experts.registry import expert_path, expert_status, load_experts
    from engine.hardware import disk_free

    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    files: dict[str, list[tuple[str, int]]] = {}
    for name, spec in specs.items():
        path = expert_path(ws, spec)
        entries = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        files[name] = [(entry.name, entry.stat().st_size) for entry in entries if entry.is_file()]
    return Inventory(
        specs=specs,
        statuses=statuses,
        files=files,
        free=disk_free(ws.root),
        starter=_starter(specs),
    )


def _starter(specs: Mapping[str, ExpertSpec]) -> tuple[str, ...]:
    """The experts of the small preset, as far as they are registered."""
    path = assets_dir() / "presets" / f"{STARTER_PRESET}.toml"
    with open(path, "rb") as file:
        names = tomllib.load(file).get("experts", {}).get("names", [])
    return tuple(name for name in names if name in specs)
