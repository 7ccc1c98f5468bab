"""The list of the root's runs: open one, lay it over the shown one, compare, name and note it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import DataTable, Static

from engine.errors import GladiusError
from engine.run.runs import RunSummary, label_run, list_runs
from gladius_tui.app.dialogs.dialog import Dialog
from gladius_tui.app.services import services
from gladius_tui.app.widgets.table import Cell, Table, coloured
from gladius_tui.format import NONE

_SIGNS = {
    "training": ("●", "success"),
    "preparing": ("◌", "primary"),
    "paused": ("‖", "warning"),
    "stopped": ("■", "warning"),
    "finished": ("✓", "success"),
    "failed": ("✗", "error"),
}
_WIDE, _MEDIUM = 100, 76
"""Columns of the terminal from which on preset and note, and the date, are shown."""


@dataclass(frozen=True)
class RunsChoice:
    """What the user chose in the list."""

    action: Literal["open", "overlay"]
    run: RunSummary


class RunsTable(Dialog[RunsChoice | None]):
    """The runs in a table. `shown`: id of the run that the Dashboard shows; "" for none."""

    def __init__(self, shown: str) -> None:
        super().__init__()
        self._shown = shown
        self.runs: dict[str, RunSummary] = {}
        """By id, the newest first."""

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog") as dialog:
            dialog.border_title = "Runs"
            dialog.border_subtitle = "enter open · o overlay · c compare · n name · t note"
            yield Table(id="runs-table", classes="")
            yield Static("reading the history …", id="runs-line", markup=False)

    def on_mount(self) -> None:
        self.query_one(Table).focus()
        self.read()

    def on_resize(self) -> None:
        self._show()

    @work(thread=True, exclusive=True, group="runs", exit_on_error=False)
    def read(self) -> None:
        """Read the list again."""
        found = list_runs(services(self).ws)
        self.app.call_later(self._loaded, found)

    def _loaded(self, found: Sequence[RunSummary]) -> None:
        if self.is_mounted:
            self.runs = {run.run_id: run for run in found}
            self._show()

    def _show(self) -> None:
        if not self.is_mounted or not self.query(Table):
            return
        width = self.size.width
        columns = ["", "run", "date", "state", "steps>", "best>", "preset", "note"]
        shown = [n for n in range(len(columns)) if width >= _WIDE or n < 6]
        shown = shown if width >= _MEDIUM else [n for n in shown if columns[n] != "date"]
        rows = {run.run_id: self._row(run) for run in self.runs.values()}
        self.query_one(Table).fill(
            [columns[n] for n in shown],
            {run_id: [row[n] for n in shown] for run_id, row in rows.items()},
        )
        self.show_line()

    def _row(self, run: RunSummary) -> list[Cell]:
        sign, colour = _SIGNS[run.status]
        return [
            "▸" if run.run_id == self._shown else "",
            run.title,
            time.strftime("%d %b %H:%M", time.localtime(run.started)),
            coloured(self.app, f"{sign} {run.status}", colour),
            f"{run.steps:,}",
            NONE if run.best_bits is None else f"{run.best_bits:.3f}",
            run.preset,
            run.note,
        ]

    @property
    def selected(self) -> RunSummary | None:
        """The run under the cursor."""
        return self.runs.get(self.query_one(Table).key or "")

    def on_data_table_row_highlighted(self, _: DataTable.RowHighlighted) -> None:
        self.show_line()

    def show_line(self) -> None:
        """Show what the table has no column for: the id and the note of the selected run."""
        run = self.selected
        if run is None:
            text = "" if self.runs else "No run yet. Press 3 to start one."
        else:
            text = " · ".join(filter(None, [run.run_id if run.name else "", run.note]))
            text = text or "held-out score in bits per byte"
        self.query_one("#runs-line", Static).update(text)


class Runs(RunsTable):
    """Returns the run to open or to lay over; None for escape."""

    BINDINGS: ClassVar = [
        Binding("o", "overlay", "Overlay", id="runs.overlay",
                tooltip="Lay this run over the shown one, or take it away"),
        Binding("c", "compare", "Compare", id="runs.compare",
                tooltip="The fields of the config in which it differs from the shown run"),
        Binding("n", "name", "Name", id="runs.name", tooltip="Give the run a name"),
        Binding("t", "note", "Note", id="runs.note", tooltip="Write a note to the run"),
        Binding("escape,h,q", "cancel", "Back", tooltip="Close the list", id="dialog.back"),
    ]  # fmt: skip

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        run = self.runs.get(event.row_key.value or "")
        if run is not None:
            self.dismiss(RunsChoice("open", run))

    def action_overlay(self) -> None:
        run = self.selected
        if run is not None and run.run_id != self._shown:
            self.dismiss(RunsChoice("overlay", run))

    def action_compare(self) -> None:
        from gladius_tui.app.dialogs.command_output import CommandOutput

        run = self.selected
        if run is not None and self._shown and run.run_id != self._shown:
            argv = ["runs", "diff", self._shown, run.run_id]
            self.app.push_screen(CommandOutput(str(services(self).ws.root), argv))

    def action_name(self) -> None:
        self._edit("name")

    def action_note(self) -> None:
        self._edit("note")

    def _edit(
        self, what: Literal["name", "note"], value: str | None = None, error: str = ""
    ) -> None:
        from gladius_tui.app.dialogs.text_input import TextInput

        run = self.selected
        if run is None:
            return
        title = f"{what.capitalize()} of {run.title}"
        about = {"name": "Its id and its files stay as they are.", "note": "Empty removes it."}
        current = [run.name if what == "name" else run.note] if value is None else [value]

        def answered(answer: list[str] | None) -> None:
            if answer is not None:
                self._label(run, what, answer[0])

        dialog = TextInput(
            title,
            about[what],
            [(what, "")],
            values=current,
            error=error,
            optional=what == "note",
        )
        self.app.push_screen(dialog, answered)

    @work(thread=True, group="label", exit_on_error=False)
    def _label(self, run: RunSummary, what: Literal["name", "note"], value: str) -> None:
        try:
            label_run(services(self).ws, run.run_id, **{what: value})
        except GladiusError as error:
            self.app.call_later(self._edit, what, value, str(error))
            return
        self.app.call_later(self.read)
