"""The Dashboard's keys that are about runs as things: the list of runs, and questions."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding

from engine.events import QuestionAnswered
from gladius_tui.app.screens.run_display import RunDisplay
from gladius_tui.app.widgets.chart_pane import ChartPane


class RunListKeys(RunDisplay):
    """A run's display with keys for the list of runs and for questions to the student."""

    BINDINGS: ClassVar = [
        Binding("h", "runs", "Runs", id="dashboard.runs",
                tooltip="All runs of this root: open, lay over, compare, name, note"),
        Binding("i", "ask", "Ask", id="dashboard.ask",
                tooltip="Put a question to the student, side by side with an expert"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[QuestionAnswered] = []
        """The questions that were asked here, with their answers."""

    def action_runs(self) -> None:
        from gladius_tui.app.dialogs.runs import Runs, RunsChoice

        def answered(choice: RunsChoice | None) -> None:
            if choice is None:
                return
            if choice.action == "open":
                self.open_run(choice.run.run_id)
            else:
                self.overlay_run(choice.run.run_id, choice.run.title)

        shown = "" if self.run_view is None else self.run_view.run_id
        self.app.push_screen(Runs(shown), answered)

    def overlay_run(self, run_id: str, title: str) -> None:
        """Lay a run over the shown one in the chart, or take it away if it is there."""
        pane = self.query_one(ChartPane)
        overlaid = dict(pane.settings.overlaid)
        if overlaid.pop(run_id, None) is None:
            overlaid[run_id] = title
        pane.settings.overlaid = overlaid
        pane.overlaid = {}
        pane.read_curves()

    def action_ask(self) -> None:
        from gladius_tui.app.dialogs.ask import Ask

        self.app.push_screen(Ask(self.answers))
