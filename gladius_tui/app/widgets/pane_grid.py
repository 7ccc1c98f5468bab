"""All panes of the Dashboard: a grid, the chart above one pane at a time, or one enlarged pane."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.geometry import NULL_OFFSET, Size, Spacing
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.widget import Widget

from engine.run.view import RunView
from gladius_tui.app.model.mfu import mfu
from gladius_tui.app.model.pane_layout import Wanted, place
from gladius_tui.app.widgets.chart_pane import ChartPane
from gladius_tui.app.widgets.pane import Pane, PaneSpec, PaneText, wrapped
from gladius_tui.app.widgets.pane_tabs import PaneTabs
from gladius_tui.app.widgets.panes.capabilities import capabilities_pane
from gladius_tui.app.widgets.panes.experts import experts_pane
from gladius_tui.app.widgets.panes.hardware import hardware_pane
from gladius_tui.app.widgets.panes.log import LogPane
from gladius_tui.app.widgets.panes.parameters import parameters_pane
from gladius_tui.app.widgets.panes.run import run_pane
from gladius_tui.app.widgets.panes.sample import sample_pane

if TYPE_CHECKING:
    from gladius_tui.app.widgets.layer_bars import LayerCharts

TABS = ("run", "experts", "capabilities", "parameters", "hardware", "sample", "log")
"""The panes, in the order of the tabs."""
_ALL_LINES = 1000
_USUAL_LINES = {"run": 10, "hardware": 6, "experts": 3}
"""What the panes need before a run is known, so that the first layout is nearly the final one."""


def _run(run: RunView, width: int, height: int, now: float) -> Content:
    return run_pane(run, width, now, mfu(run))


def _hardware(run: RunView, width: int, height: int, now: float) -> Content:
    return hardware_pane(run, width, _ALL_LINES)


def _parameters(run: RunView, width: int, height: int, now: float) -> Content:
    return parameters_pane(run, width, height)


def _experts(run: RunView, width: int, height: int, now: float) -> Content:
    return experts_pane(run, width, height)


def _capabilities(run: RunView, width: int, height: int, now: float) -> Content:
    return capabilities_pane(run, width, height)


def _sample(run: RunView, width: int, height: int, now: float) -> Content:
    return sample_pane(run)


def _no_text(run: RunView, width: int, height: int, now: float) -> Content:
    return Content("")  # LogPane makes its lines itself


def _spec(name: str, title: str, shows: set[str], text: PaneText) -> PaneSpec:
    return PaneSpec(name, title, frozenset(shows), text)


_RUN = _spec("run", "Run", {"run", "step", "eval"}, _run)
_LOG = _spec("log", "Log", {"log"}, _no_text)
_OTHERS = (
    _spec("hardware", "Hardware", {"hardware"}, _hardware),
    _spec("capabilities", "Capabilities", {"capabilities"}, _capabilities),
    _spec("parameters", "Parameters", {"parameters"}, _parameters),
    _spec("experts", "Experts", {"experts"}, _experts),
    _spec("sample", "Sample", {"sample"}, _sample),
)
ALL_CHANGES = frozenset({"chart"}).union(*(spec.shows for spec in (_RUN, _LOG, *_OTHERS)))
"""What redraws every pane, and the chart."""


class _PaneLayout(Layout):
    """Places the panes where `place` says."""

    name = "panes"

    def arrange(
        self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True
    ) -> ArrangeResult:
        assert isinstance(parent, PaneGrid)
        regions = place(size, parent.wanted)
        placements = []
        for child in children:
            region = regions.get((child.id or "").removesuffix("-pane"))
            if region is not None:
                placements.append(WidgetPlacement(region, NULL_OFFSET, Spacing(), child))
        return placements


def _lines_needed(run: RunView, run_width: int, now: float) -> dict[str, int]:
    """The lines that each pane needs."""
    measured = len(run.best_capabilities)
    return {
        "run": len(wrapped(run_pane(run, run_width, now), run_width)),
        "hardware": hardware_pane(run, 28, _ALL_LINES).plain.count("\n") + 1,
        "experts": 1 + 2 * len(run.experts),
        "capabilities": measured + 1 if measured else 0,
    }


class PaneGrid(Container):
    """All panes. `show` redraws them; the other methods change which ones are in sight."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = Wanted(_USUAL_LINES)
        self._panes_layout = _PaneLayout()
        self._run: RunView | None = None
        self._layers: LayerCharts | None = None

    @property
    def layout(self) -> Layout:
        """Where the panes stand."""
        return self._panes_layout

    def compose(self) -> ComposeResult:
        yield PaneTabs(list(TABS), "run")
        yield Pane(_RUN)
        yield ChartPane()
        for spec in _OTHERS:
            yield Pane(spec)
        yield LogPane(_LOG)

    def on_mount(self) -> None:
        self._place()

    def on_resize(self) -> None:
        self._place()

    @property
    def log_pane(self) -> LogPane:
        """The pane with the run's log."""
        return self.query_one(LogPane)

    @property
    def has_capabilities(self) -> bool:
        """Whether capabilities were measured, and are not shown beside the log already."""
        if not self.wanted.lines.get("capabilities"):
            return False
        shown = place(self.size, self.wanted)
        return not ("capabilities" in shown and "log" in shown)

    def show(self, run: RunView | None, changed: set[str], now: float) -> None:
        """Redraw the panes that depend on what has changed; `now` is Unix time."""
        self._run = run
        if run is not None and changed & {"run", "experts", "capabilities", "hardware"}:
            run_width = self.query_one("#run-pane", Pane).size.width or 29
            self._place(lines=_lines_needed(run, run_width, now))
        if "parameters" in changed:
            self._show_layers()
        for pane in self.query(Pane):
            if pane.shows & changed:
                pane.show(run, now)

    def _show_layers(self) -> None:
        """Show the charts of the layers, while the pane Parameters is enlarged."""
        stats = self._run.layers if self._run is not None else None
        if self.wanted.enlarged != "parameters":
            return
        if stats is not None and self._layers is None:
            from gladius_tui.app.widgets.layer_bars import LayerCharts  # imports plotext

            self._layers = LayerCharts(stats)
            self.mount(self._layers)
        self._place(layers=stats is not None)
        if stats is not None and self._layers is not None:
            self._layers.show(stats)

    def select(self, name: str) -> None:
        """Show this pane if only one has room."""
        self._place(selected=name)

    def select_next(self, offset: int) -> None:
        """Show the pane `offset` tabs further."""
        tabs = self.query_one(PaneTabs)
        self.select(tabs.neighbour(offset))

    def toggle_capabilities(self) -> None:
        """Show the capabilities instead of the log, or the log again."""
        self._place(capabilities=not self.wanted.capabilities)

    def enlarge(self, name: str) -> None:
        """Give a pane the whole screen; "" gives every pane its place again."""
        self.log_pane.whole = name == "log"
        self.query_one(ChartPane).enlarged = name == "chart"
        self._place(enlarged=name)

    def on_pane_tabs_selected(self, message: PaneTabs.Selected) -> None:
        self.select(message.pane)

    def _place(self, **changes: Any) -> None:
        """Place the panes again if what they need has changed."""
        old = self.wanted
        self.wanted = replace(old, **changes)
        tabs = self.query_one(PaneTabs)
        measured = bool(self.wanted.lines.get("capabilities"))
        tabs.set_names([name for name in TABS if name != "capabilities" or measured])
        if tabs.selected != self.wanted.selected:
            tabs.select(self.wanted.selected)
        shown = place(self.size, self.wanted)
        for child in self.children:
            child.display = (child.id or "").removesuffix("-pane") in shown
        if self.wanted != old:
            self._clear_arrangement_cache()  # a layout refresh clears only those of the ancestors
            self.refresh(layout=True)
