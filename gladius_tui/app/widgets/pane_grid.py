"""All panes of the Dashboard: a grid, or the chart above one pane at a time."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content

from engine.run.view import RunView
from gladius_tui.app.model.mfu import mfu
from gladius_tui.app.widgets.chart_pane import ChartPane
from gladius_tui.app.widgets.pane import Pane, PaneSpec, PaneText
from gladius_tui.app.widgets.pane_tabs import PaneTabs
from gladius_tui.app.widgets.panes.capabilities import capabilities_pane
from gladius_tui.app.widgets.panes.experts import experts_pane
from gladius_tui.app.widgets.panes.hardware import hardware_pane
from gladius_tui.app.widgets.panes.log import log_pane
from gladius_tui.app.widgets.panes.parameters import parameters_pane
from gladius_tui.app.widgets.panes.run import run_pane
from gladius_tui.app.widgets.panes.sample import sample_pane

TABS = ("run", "experts", "capabilities", "parameters", "hardware", "sample", "log")
"""The panes, in the order of the tabs."""


def _run(run: RunView, width: int, height: int, now: float) -> Content:
    return run_pane(run, width, now, mfu(run))


def _hardware(run: RunView, width: int, height: int, now: float) -> Content:
    return hardware_pane(run, width, height)


def _parameters(run: RunView, width: int, height: int, now: float) -> Content:
    return parameters_pane(run, width)


def _experts(run: RunView, width: int, height: int, now: float) -> Content:
    return experts_pane(run, width, height)


def _capabilities(run: RunView, width: int, height: int, now: float) -> Content:
    return capabilities_pane(run, width, height)


def _sample(run: RunView, width: int, height: int, now: float) -> Content:
    return sample_pane(run)


def _log(run: RunView, width: int, height: int, now: float) -> Content:
    return log_pane(run, width, height)


def _spec(name: str, title: str, shows: set[str], text: PaneText) -> PaneSpec:
    return PaneSpec(name, title, frozenset(shows), text)


_RUN = _spec("run", "Run", {"run", "step", "eval"}, _run)
_SIDE_PANES = (
    _spec("hardware", "Hardware", {"hardware"}, _hardware),
    # The capabilities' place in the grid; below it, their place instead of the log, and as a tab.
    _spec("capabilities-grid", "Capabilities", {"capabilities"}, _capabilities),
    _spec("parameters", "Parameters", {"parameters"}, _parameters),
    _spec("experts", "Experts", {"experts"}, _experts),
    _spec("sample", "Sample", {"sample"}, _sample),
    _spec("log", "Log", {"log"}, _log),
    _spec("capabilities", "Capabilities", {"capabilities"}, _capabilities),
)
ALL_CHANGES = frozenset({"chart"}).union(*(spec.shows for spec in (_RUN, *_SIDE_PANES)))
"""What redraws every pane, and the chart."""


class PaneGrid(Container):
    """All panes: a grid if there is room, else the chart above one pane at a time."""

    _grid_rows: str | None = None
    """Heights of the grid's rows while the capabilities stand below the hardware."""

    def compose(self) -> ComposeResult:
        yield PaneTabs(list(TABS), "run")
        yield Pane(_RUN)
        yield ChartPane()
        for spec in _SIDE_PANES:
            yield Pane(spec)

    def on_mount(self) -> None:
        self.select("run")

    @property
    def has_capabilities(self) -> bool:
        """Whether the grid has a place for the capabilities."""
        return self._grid_rows is not None

    def place_capabilities(self, run: RunView | None) -> None:
        """Place the capabilities below the hardware if both have room in the grid; otherwise a key
        shows them instead of the log."""
        rows = len(run.best_capabilities) if run is not None else 0
        gpus = len(run.hardware.gpus) if run is not None and run.hardware else 0
        width, height = self.size
        low, bottom = (9, 10) if width >= 160 else (8, 7)
        fits = rows and width >= 100 and height - low - bottom - (rows + 3) >= 8 + 3 * gpus
        grid_rows = f"1fr {rows + 3} {low} {bottom}" if fits else None
        if grid_rows != self._grid_rows:
            self._grid_rows = grid_rows
            self.set_class(grid_rows is not None, "-capabilities")
            self.styles.grid_rows = grid_rows

    def show(self, run: RunView | None, changed: set[str], now: float) -> None:
        """Redraw the panes that depend on what has changed; `now` is Unix time."""
        if changed & {"capabilities", "hardware"}:
            self.place_capabilities(run)
        for pane in self.query(Pane):
            if pane.shows & changed:
                pane.show(run, now)

    def select(self, name: str) -> None:
        """Show this pane if only one has room."""
        self.query_one(PaneTabs).select(name)
        for pane in self.query(Pane):
            pane.set_class(pane.id == f"{name}-pane", "-selected")

    def select_next(self, offset: int) -> None:
        """Show the pane `offset` tabs further."""
        self.select(self.query_one(PaneTabs).neighbour(offset))

    def on_pane_tabs_selected(self, message: PaneTabs.Selected) -> None:
        self.select(message.pane)
