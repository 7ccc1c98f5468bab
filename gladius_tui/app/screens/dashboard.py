"""The Dashboard: the training run, live or from the history, and keys for it and its chart."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding
from textual.content import Content

from gladius_tui.app.screens.chart_keys import ChartKeys
from gladius_tui.app.screens.run_controls import RunControls
from gladius_tui.app.screens.run_list_keys import RunListKeys
from gladius_tui.app.widgets.pane_grid import PaneGrid
from gladius_tui.app.widgets.pane_tabs import PaneTabs
from gladius_tui.app.widgets.panes.run import summary_line


class DashboardScreen(RunListKeys, ChartKeys, RunControls):
    """The training run."""

    MODE = "dashboard"
    CSS_PATH = "dashboard.tcss"
    BINDINGS: ClassVar = [
        Binding("v", "lens", "Lens", id="dashboard.lens",
                tooltip="Compare the next-token predictions of student and expert"),
        Binding("a", "capabilities", "Capabilities", id="dashboard.abilities",
                tooltip="Show the capabilities of student and experts instead of the log"),
        Binding("tab", "tab(1)", "Next pane", show=False, priority=True, id="dashboard.next_pane",
                tooltip="The next pane, if only one has room"),
        Binding("shift+tab", "tab(-1)", "Previous pane", show=False, priority=True,
                id="dashboard.former_pane", tooltip="The previous pane, if only one has room"),
    ]  # fmt: skip

    def about(self) -> str:
        return (
            "The training run: its progress, its curves, and how closely the student matches each "
            "expert. It shows the run that is active on this root, wherever it was started, or "
            "the last one."
        )

    def summary(self) -> Content:
        return Content(f"GLADIUS {summary_line(self.run_view)}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "tab":
            return self.has_class("-w60")
        if action == "capabilities":
            # In a narrow terminal they are one of the tabs; in a large one they are in the grid.
            return not self.has_class("-w60") and not self.query_one(PaneGrid).has_capabilities
        return super().check_action(action, parameters)

    def action_tab(self, offset: int) -> None:
        self.query_one(PaneGrid).select_next(offset)
        self.call_after_refresh(self.redraw_all)

    def on_pane_tabs_selected(self, _: PaneTabs.Selected) -> None:
        self.call_after_refresh(self.redraw_all)

    def action_capabilities(self) -> None:
        self.toggle_class("-capabilities")
        self.call_after_refresh(self.redraw_all)

    def action_lens(self) -> None:
        from gladius_tui.app.dialogs.lens import Lens

        if self.run_view is None:
            return

        def closed(_: None) -> None:
            self.lens = None

        self.lens = Lens(self.run_view)
        self.app.push_screen(self.lens, closed)
