"""The curves behind a chart: read from the history, then grown by live values.

Curves are read in a thread, reduced to the chart's width, then grown until they must be read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from textual.app import ComposeResult
from textual.containers import Vertical

from engine.events import AnyEvent, CapabilitiesScored, EvalDone, LayerStats, StepDone
from engine.run.rollup import Column, measurements
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.app.model.chart_settings import ChartSettings
from gladius_tui.app.model.curves import Curve, View
from gladius_tui.app.model.drawing import Panel, Series
from gladius_tui.app.model.metrics import PANELS, in_order, panel_of, style_of
from gladius_tui.app.services import services
from gladius_tui.app.widgets.chart import Chart
from gladius_tui.app.widgets.partial_refresh import PartialRefresh


@dataclass(frozen=True)
class _Request:
    """Which curves to read: the metrics over the steps lo <= step < hi, and those of other runs."""

    number: int
    run_id: str
    metrics: tuple[str, ...]
    overlaid: tuple[str, ...]
    """Ids of the former runs."""
    view: View
    newest: int
    """The run's newest step."""
    columns: int


@dataclass(frozen=True)
class _Answer:
    request: _Request
    curves: dict[str, list[Column]]
    overlaid: dict[str, dict[str, list[Column]]]
    former_newest: int
    """The newest step of the former runs."""


class ChartCurves(PartialRefresh, Vertical):
    """A chart of one run with its curves. Subclasses override `draw`."""

    def __init__(self) -> None:
        super().__init__(id="chart-pane", classes="dashboard-pane")
        self.settings = ChartSettings()
        self.chart = Chart(id="chart")
        self.run_view: RunView | None = None
        self.curves: dict[str, Curve] = {}
        self.overlaid: dict[str, dict[str, Curve]] = {}
        """Curves of former runs, by run id."""
        self.reading = False
        """Whether curves are being read."""
        self._former_newest = 0
        self._request_number = 0
        """Number of the last request; answers to older ones are dropped."""
        self._live: list[tuple[str, int, float | None]] = []
        """(metric, step, value) of live values that arrived while curves were being read."""
        self._columns = 0
        """Columns that the last request was for."""

    def compose(self) -> ComposeResult:
        yield self.chart

    def draw(self, now: bool = False) -> bool:
        """Draw the chart; False if it was drawn too recently and `now` is not set."""
        raise NotImplementedError

    @property
    def newest(self) -> int:
        """The newest step of the run and of the former runs that are laid over it."""
        step = (self.run_view.step or 0) if self.run_view is not None else 0
        return max(step, self._former_newest if self.settings.overlaid else 0)

    def open(self, run: RunView) -> None:
        """Show another run, or the same one after it was read again."""
        self.run_view = run
        self.curves = {}
        self.read_curves()

    def read_curves(self) -> None:
        """Read the curves from the history; the current drawing stays until that is done."""
        if self.run_view is None or not self.chart.size:
            return
        self._request_number += 1
        self.reading = True
        self._live = []
        self._columns = self.chart.plot_columns
        request = _Request(
            number=self._request_number,
            run_id=self.run_view.run_id,
            metrics=self.settings.metrics,
            overlaid=tuple(self.settings.overlaid),
            view=self.settings.view,
            newest=self.run_view.step or 0,
            columns=self._columns,
        )
        work = partial(self._read, services(self).ws, request)
        # The screen reports the errors of its workers.
        self.screen.run_worker(work, thread=True, group="curves", exit_on_error=False)

    def on_chart_resized(self) -> None:
        """A curve has as many columns as the chart, which may be laid out after it was read."""
        if self.chart.size and self.chart.plot_columns != self._columns:
            self.read_curves()

    def _read(self, ws: Workspace, request: _Request) -> None:
        """In a thread."""
        if request.number == self._request_number:
            self.app.call_later(self._curves_read, _read_curves(ws, request))

    def _curves_read(self, answer: _Answer) -> None:
        request = answer.request
        if request.number != self._request_number:
            return
        self.reading = False
        self._former_newest = answer.former_newest
        self.curves = {
            metric: Curve(metric, read, max(request.columns, len(read)), request.newest)
            for metric, read in answer.curves.items()
        }
        self.overlaid = {
            run: {metric: Curve(metric, read) for metric, read in curves.items()}
            for run, curves in answer.overlaid.items()
        }
        for metric, step, value in self._live:
            if metric in self.curves and step > request.newest:
                self.curves[metric].add(step, value)
        self._live = []
        self.draw(now=True)

    def grow(self, events: Sequence[AnyEvent]) -> None:
        """Add live values to the curves."""
        complete = True
        for event in events:
            if not isinstance(event, StepDone | EvalDone | CapabilitiesScored | LayerStats):
                continue
            for metric, value in measurements(event):
                if metric not in self.settings.metrics:
                    continue
                if self.reading:
                    self._live.append((metric, event.step, value))
                elif metric in self.curves and self.settings.view.end is None:
                    complete &= self.curves[metric].add(event.step, value)
        if not complete and not self.reading:
            self.read_curves()

    def panels(self) -> list[Panel]:
        """The chosen metrics by panel; of former runs only the first metric of each panel."""
        panels: dict[str, Panel] = {}
        experts = list(self.run_view.experts) if self.run_view is not None else []
        for metric in in_order(self.settings.metrics):
            key = panel_of(metric)
            first = key not in panels
            panel = panels.setdefault(key, Panel(key, PANELS.get(key, key)))
            if metric in self.curves:
                colour, mark = style_of(metric, experts)
                panel.series.append(Series(self.curves[metric], colour, mark))
            if not first:
                continue
            for number, (run_id, curves) in enumerate(self.overlaid.items()):
                if metric in curves and curves[metric].columns:
                    title = self.settings.overlaid.get(run_id, run_id)
                    panel.series.append(Series(curves[metric], number, number, title))
        return list(panels.values())


def _read_curves(ws: Workspace, request: _Request) -> _Answer:
    from gladius_tui.app.model.past_runs import last_step, read_curves

    columns = request.columns
    former_newest = max((last_step(ws, run) for run in request.overlaid), default=0)
    lo, hi = request.view.bounds(max(request.newest, former_newest))
    # Begin before the visible steps, so that a moving average has warmed up where they begin.
    start = max(0, lo - (hi - lo) // 2)
    extra = columns * (lo - start) // max(1, hi - lo)
    curves = read_curves(ws, request.run_id, request.metrics, start, hi, columns + extra)
    first = {panel_of(metric): metric for metric in reversed(in_order(request.metrics))}
    overlaid = {
        run: read_curves(ws, run, list(first.values()), start, hi, columns + extra)
        for run in request.overlaid
    }
    return _Answer(request, curves, overlaid, former_newest)
