"""The table of experts on the Download screen, with a progress bar for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gladius_tui.app.model.download_state import DownloadState
from gladius_tui.app.model.inventory import STATE_MARKS
from gladius_tui.app.model.job_info import download_stage
from gladius_tui.app.model.texts import cut, eta, fraction_done, rate
from gladius_tui.app.widgets.table import Cell, Table, coloured
from gladius_tui.format import NONE, bar, share_of, size

if TYPE_CHECKING:
    from engine.events import Progress
    from engine.experts.registry import ExpertSpec, ExpertStatus


class DownloadQueue(Table):
    """A row for each expert."""

    def __init__(self) -> None:
        super().__init__(id="queue", title="Queue")

    def show(self, state: DownloadState, filter_text: str, width: int) -> None:
        """Show the experts that match the filter, in a terminal of `width` columns."""
        inventory = state.inventory
        assert inventory is not None
        header = ["", "expert", "state", "", "size>" if width < 100 else "done>"]
        header += ["speed>", "eta>"] if width >= 80 else []
        header += ["activity"] if width >= 110 else []
        rows = {
            name: self._row(state, spec, inventory.statuses[name], width)
            for name, spec in inventory.specs.items()
            if filter_text in f"{name} {spec.title} {spec.repo}".lower()
        }
        self.fill(header, rows)

    def _row(
        self, state: DownloadState, spec: ExpertSpec, status: ExpertStatus, width: int
    ) -> list[Cell]:
        name = spec.name
        progress = state.progress_of(name) if name in state.names or state.live else None
        active = state.live and progress is not None and not progress.finished
        mark, colour, fraction = _state_mark(state, name, status, progress)
        cells = 10 if width < 100 else 24 if width < 150 else 40
        meter = coloured(
            self.app, bar(fraction, cells).rstrip("▁"), "primary" if fraction < 1 else "success"
        )
        meter.append("▁" * (cells - len(meter)), style="dim")
        # After a download has ended, the inventory is read again.
        current = progress if state.live else None
        done = current.done if current else status.present_bytes
        total = (current.total if current else 0) or status.expected_bytes
        amount = size(total) if width < 100 else share_of(done, total)
        row: list[Cell] = [
            "●" if name in (state.selection or ()) else coloured(self.app, "○", "dim"),
            cut(spec.title, 40),
            coloured(self.app, mark, colour),
            meter,
            amount if total else NONE,
        ]
        if width >= 80:
            row += [rate(progress), eta(progress)] if active and progress else ["", ""]
        if width >= 110:
            row.append(state.activity_of(name) if active else "")
        return row


def _state_mark(
    state: DownloadState, name: str, status: ExpertStatus, progress: Progress | None
) -> tuple[str, str, float]:
    """Text, colour and fraction done of an expert's state."""
    mark, colour = STATE_MARKS[status.state]
    fraction = 1.0 if status.state == "ready" else 0.0
    if state.live and progress is not None:
        fraction = fraction_done(progress) or 0.0
        if progress.finished:
            mark, colour = STATE_MARKS["ready"]
        else:
            stage = download_stage(progress)
            mark = f"↓ {fraction:.0%}" if stage == "downloading" else f"# {stage}"
            colour = "primary"
    elif status.state == "partial" and status.expected_bytes:
        fraction = min(0.99, status.present_bytes / status.expected_bytes)
    if status.state != "ready":
        if state.live and name in (state.selection or ()) and progress is None:
            mark, colour = "· Queued", "dim"
        if name in state.failed:
            mark, colour = "✗ Failed", "error"
    return mark, colour, fraction
