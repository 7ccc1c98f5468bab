"""The table of experts on the Models screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gladius_tui.app.model.inventory import STATE_MARKS, Inventory
from gladius_tui.app.model.texts import cut
from gladius_tui.app.widgets.table import Cell, Table, coloured
from gladius_tui.format import NONE, size

if TYPE_CHECKING:
    from engine.experts.registry import ExpertSpec, ExpertStatus

_TITLE = 40
"""Characters of a title that are shown."""
_WIDE, _VERY_WIDE = 100, 150
"""Columns of the terminal from which on more columns are shown."""


class ExpertTable(Table):
    """A row for each expert: state, size, weight; repository and licence if there is room."""

    def __init__(self) -> None:
        super().__init__(id="table", title="Experts")

    def show(self, inventory: Inventory, filter_text: str, width: int) -> None:
        """Show the experts that match the filter, in a terminal of `width` columns."""
        wide, very_wide = width >= _WIDE, width >= _VERY_WIDE
        header = ["state", "expert", "size>", "weight>"]
        header += ["repository"] if very_wide else []
        header += [""] if wide else []
        header += ["licence"] if very_wide else []
        rows = {
            name: self._row(spec, inventory.statuses[name], wide, very_wide)
            for name, spec in inventory.specs.items()
            if filter_text in _searchable(name, spec)
        }
        self.fill(header, rows)
        ready = sum(status.state == "ready" for status in inventory.statuses.values())
        present = sum(status.present_bytes for status in inventory.statuses.values())
        self.border_subtitle = (
            f"{ready} of {len(inventory.specs)} ready · {size(present)} on disk · "
            f"{size(inventory.free)} free"
        )

    def _row(
        self, spec: ExpertSpec, status: ExpertStatus, wide: bool, very_wide: bool
    ) -> list[Cell]:
        mark, colour = STATE_MARKS[status.state]
        share = ""
        if status.state == "partial" and status.expected_bytes:
            share = f" {min(0.99, status.present_bytes / status.expected_bytes):.0%}"
        cells: list[Cell] = [
            coloured(self.app, f"{mark}{share}", colour),
            cut(spec.title, _TITLE),
            size(status.expected_bytes) if status.expected_bytes else NONE,
            f"{spec.weight:.2f}".removesuffix("0"),
        ]
        if very_wide:
            cells.append(spec.repo)
        if wide:
            kind = "required" if spec.required else "optional"
            cells.append(kind + (", gated" if spec.gated else ""))
        if very_wide:
            cells.append(spec.license or NONE)
        return cells


def _searchable(name: str, spec: ExpertSpec) -> str:
    return " ".join([name, spec.title, spec.repo, spec.license, *spec.capabilities]).lower()
