"""One check in full on the Validate screen."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from engine.events import CheckDone
from gladius_tui.app.widgets.check_table import VERDICTS
from gladius_tui.app.widgets.table import Cell, coloured, facts
from gladius_tui.format import NONE


class CheckDetails(VerticalScroll):
    """Value, bound, meaning and details of a check, whole answers included."""

    def __init__(self) -> None:
        super().__init__(id="details", classes="pane")
        self.border_title = "Details"

    def compose(self) -> ComposeResult:
        yield Static(id="details-text", markup=False)

    def show(self, check: CheckDone | None) -> None:
        """Show a check; None: nothing."""
        text = self.query_one(Static)
        if check is None:
            text.update("")
            return
        sign, colour = VERDICTS[check.verdict]
        kind = "decides the verdict" if check.group == "structural" else "informative, never fails"
        rows: list[tuple[str, Cell]] = [
            ("check", check.title),
            ("verdict", coloured(self.app, f"{sign} {check.verdict}", colour)),
            ("found", check.value or NONE),
            ("bound", check.bound or NONE),
        ]
        rows += [("before", check.former)] if check.former else []
        rows += [("means", check.meaning), ("kind", f"{check.group}: {kind}")]
        rows += [("", ""), ("", check.detail)] if check.detail else []
        text.update(facts(rows, 8))
