"""The Dashboard: the training run, live or from the history, with keys for it, its panes and its
chart.
"""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding
from textual.content import Content

from gladius_tui.app.screens.chart_keys import ChartKeys
from gladius_tui.app.screens.pane_keys import PaneKeys
from gladius_tui.app.screens.run_controls import RunControls
from gladius_tui.app.screens.run_list_keys import RunListKeys
from gladius_tui.app.widgets.panes.run import summary_line


class DashboardScreen(RunListKeys, PaneKeys, ChartKeys, RunControls):
    """The training run."""

    MODE = "dashboard"
    CSS_PATH = "dashboard.tcss"
    BINDINGS: ClassVar = [
        Binding("v", "lens", "Lens", id="dashboard.lens",
                tooltip="Compare the next-token predictions of student and expert"),
    ]  # fmt: skip

    def about(self) -> str:
        return (
            "The training run: its progress, its curves, and how closely the student matches each "
            "expert. It shows the run that is active on this root, wherever it was started, or "
            "the last one."
        )

    def summary(self) -> Content:
        return Content(f"GLADIUS {summary_line(self.run_view)}")

    def action_lens(self) -> None:
        from gladius_tui.app.dialogs.lens import Lens

        if self.run_view is None:
            return

        def closed(_: None) -> None:
            self.lens = None

        self.lens = Lens(self.run_view)
        self.app.push_screen(self.lens, closed)
