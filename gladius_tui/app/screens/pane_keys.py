"""The Dashboard's keys for its panes: select, enlarge, search the log, show the capabilities."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding
from textual.dom import DOMNode
from textual.events import Click

from gladius_tui.app.screens.run_display import RunDisplay
from gladius_tui.app.widgets.chart_pane import ChartPane
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.pane_grid import PaneGrid
from gladius_tui.app.widgets.pane_tabs import PaneTabs


class PaneKeys(RunDisplay):
    """A run's display with keys for its panes."""

    FILTERS = True
    BINDINGS: ClassVar = [
        Binding("a", "capabilities", "Capabilities", id="dashboard.abilities",
                tooltip="Show the capabilities of student and experts instead of the log"),
        Binding("enter", "enlarge", "Enlarge", show=False, id="dashboard.enlarge",
                tooltip="Give the focused pane (or the chart) the whole screen; esc goes back"),
        Binding("slash", "filter", "Search", show=False, id="dashboard.search",
                tooltip="Search the log"),
        Binding("tab", "tab(1)", "Next pane", show=False, priority=True, id="dashboard.next_pane",
                tooltip="The next pane, if only one has room"),
        Binding("shift+tab", "tab(-1)", "Previous pane", show=False, priority=True,
                id="dashboard.former_pane", tooltip="The previous pane, if only one has room"),
    ]  # fmt: skip

    @property
    def grid(self) -> PaneGrid:
        """All panes."""
        return self.query_one(PaneGrid)

    @property
    def enlarged(self) -> str:
        """The name of the pane that has the whole screen; "" for none."""
        return self.grid.wanted.enlarged if self.composed else ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "tab":
            return self.has_class("-w60") and not self.enlarged
        if action == "capabilities":
            # In a narrow terminal they are one of the tabs.
            return not self.has_class("-w60") and self.grid.has_capabilities
        return super().check_action(action, parameters)

    def action_tab(self, offset: int) -> None:
        self.grid.select_next(offset)
        self.call_after_refresh(self.redraw_all)

    def on_pane_tabs_selected(self, _: PaneTabs.Selected) -> None:
        self.call_after_refresh(self.redraw_all)

    def action_capabilities(self) -> None:
        self.grid.toggle_capabilities()
        self.call_after_refresh(self.redraw_all)

    def action_enlarge(self) -> None:
        if self.run_view is None:
            return
        if self.enlarged:
            self._enlarge("")
            return
        pane, selected = self.focused, self.grid.wanted.selected
        if isinstance(pane, Pane):
            selected = pane.pane_name
        elif not self.has_class("-w60") or selected == "run" or isinstance(pane, ChartPane):
            selected = "chart"
        self._enlarge(selected)

    def on_click(self, event: Click) -> None:
        if event.chain == 2 and self.run_view is not None:
            node: DOMNode | None = event.widget
            while node is not None and not isinstance(node, Pane | ChartPane):
                node = node.parent
            if node is not None:
                name = node.pane_name if isinstance(node, Pane) else "chart"
                self._enlarge("" if self.enlarged else name)

    def _enlarge(self, name: str) -> None:
        self.grid.enlarge(name)
        if name:
            self.set_focus(self.query_one(f"#{name}-pane"))
        self.refresh_bindings()
        self.call_after_refresh(self.redraw_all)

    def action_back(self) -> None:
        if not self.filter_shown and self.enlarged:
            self._enlarge("")
        elif self.filter_shown or not self.query_one(ChartPane).hide_cursor():
            super().action_back()

    def focus_main(self) -> None:
        """Focus the log while it is searched, so that enter enlarges it."""
        self.set_focus(self.grid.log_pane if self.grid.log_pane.search else None)

    def filter_changed(self, text: str) -> None:
        log = self.grid.log_pane
        log.search = text
        if text and not log.display:
            self.grid.select("log")
            if self.grid.wanted.capabilities:
                self.grid.toggle_capabilities()
        self.mark_changed("log")
