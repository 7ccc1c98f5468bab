"""The Preflight panel of the Train screen: what a run needs, and what keeps it from starting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from gladius_tui.app.widgets.table import Cell, coloured, facts
from gladius_tui.format import size

if TYPE_CHECKING:  # its checks are imported when the form is first assessed
    from gladius_tui.app.model.preflight import Assessment

_VERDICTS = {
    "ok": ("✓ ", "success"),
    "warn": ("! ", "warning"),
    "bad": ("✗ ", "error"),
    "note": ("", "primary"),
    "": ("", ""),
}


class PreflightPane(VerticalScroll):
    """The lines of an assessment, its problems, and what can be started."""

    def __init__(self) -> None:
        super().__init__(id="preflight", classes="pane")
        self.border_title = "Preflight"
        self._rows: list[tuple[str, Cell]] | None = None

    def compose(self) -> ComposeResult:
        yield Static("checking…", markup=False)

    def show(self, assessment: Assessment, training: bool) -> None:
        """Show an assessment; `training`: whether a run is active.

        Whether the run can start comes first: in a small terminal only the first lines are seen.
        """
        rows: list[tuple[str, Cell]] = []
        if problems := assessment.problems:
            title = "problems" if len(problems) > 1 else "problem"
            for n, problem in enumerate(problems):
                rows.append(("" if n else title, coloured(self.app, f"✗ {problem}", "error")))
        elif not training:
            rows.append(("ready", coloured(self.app, "✓ ^s to start", "success")))
        if assessment.fetch and not training:
            amount = f" ({size(assessment.fetch_bytes)})" if assessment.fetch_bytes else ""
            names = ", ".join(assessment.fetch)
            text = f"^s fetches {names}{amount}, then starts"
            rows.append(("", coloured(self.app, text, "success")))
        if assessment.stored is not None and not training:
            step, preset = assessment.stored
            rows.append(("unfinished", f"{preset}, stopped at step {step:,}; ^r to resume"))
        rows += [("", "")] if rows and assessment.lines else []
        for line in assessment.lines:
            sign, colour = _VERDICTS[line.verdict]
            rows.append((line.label, coloured(self.app, sign, colour).append(line.text)))
        if rows != self._rows:  # the form is assessed whenever the screen is shown again
            self._rows = rows
            self.query_one(Static).update(facts(rows))
