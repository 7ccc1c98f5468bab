"""The Dashboard's chart with its title, and the curves behind it.

Curves are read from the history in a thread, reduced to the chart's width, then grown by live
values until they must be read again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from textual.containers import Vertical
from textual.content import Content

from engine.events import AnyEvent, CapabilitiesScored, EvalDone, StepDone
from engine.run.rollup import Column, measurements
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.app.model.chart_settings import ChartSettings
from gladius_tui.app.model.curves import Curve, View
from gladius_tui.app.model.drawing import Drawing, Series, legend
from gladius_tui.app.services import services
from gladius_tui.app.theme import chart_colours
from gladius_tui.app.widgets.partial_refresh import PartialRefresh

if TYPE_CHECKING:
    from gladius_tui.app.widgets.chart import Chart


@dataclass(frozen=True)
class _Request:
    """Which curves to read: the metrics over the steps lo <= step < hi, and those of other runs."""

    number: int
    run_id: str
    metrics: tuple[str, ...]
    overlaid: tuple[str, ...]
    """Ids of the former runs."""
    lo: int
    hi: int
    newest: int
    """The run's newest step."""
    columns: int


@dataclass(frozen=True)
class _Answer:
    request: _Request
    curves: dict[str, list[Column]]
    overlaid: dict[str, dict[str, list[Column]]]


class ChartPane(PartialRefresh, Vertical):
    """The chart of one run. plotext is imported with the first chart."""

    def __init__(self) -> None:
        super().__init__(id="chart-pane", classes="dashboard-pane")
        self.border_title = "Loss"
        self.settings = ChartSettings()
        self.chart: Chart | None = None
        """None before the first paint, which does not wait for plotext."""
        self.run_view: RunView | None = None
        self.curves: dict[str, Curve] = {}
        self.overlaid: dict[str, dict[str, Curve]] = {}
        """Curves of former runs, by run id."""
        self.reading = False
        """Whether curves are being read."""
        self._request_number = 0
        """Number of the last request; answers to older ones are dropped."""
        self._live: list[tuple[str, int, float | None]] = []
        """(metric, step, value) of live values that arrived while curves were being read."""
        self._columns = 0
        """Columns that the last request was for."""

    async def make_chart(self) -> None:
        """Import plotext and mount the chart."""
        module = await asyncio.to_thread(import_module, "gladius_tui.app.widgets.chart")
        if self.chart is None and self.is_mounted:
            chart = module.Chart(id="chart")
            await self.mount(chart)
            self.chart = chart
            self.call_after_refresh(self.read_curves)

    @property
    def newest(self) -> int:
        """The run's newest step."""
        return (self.run_view.step or 0) if self.run_view is not None else 0

    def open(self, run: RunView) -> None:
        """Show another run, or the same one after it was read again."""
        self.run_view = run
        self.curves = {}
        self.read_curves()

    def read_curves(self) -> None:
        """Read the curves from the history; the current drawing stays until that is done."""
        if self.run_view is None or self.chart is None:
            return
        self._request_number += 1
        self.reading = True
        self._live = []
        self._columns = self.chart.plot_columns
        lo, hi = self.settings.view.bounds(self.newest)
        request = _Request(
            number=self._request_number,
            run_id=self.run_view.run_id,
            metrics=self.settings.metrics,
            overlaid=tuple(self.settings.overlaid),
            lo=lo,
            hi=hi,
            newest=self.newest,
            columns=self._columns,
        )
        work = partial(self._read, services(self).ws, request)
        # The screen reports the errors of its workers.
        self.screen.run_worker(work, thread=True, group="curves", exit_on_error=False)

    def on_chart_resized(self) -> None:
        """A curve has as many columns as the chart, which may be laid out after it was read."""
        if self.chart is not None and self.chart.size and self.chart.plot_columns != self._columns:
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
            if not isinstance(event, StepDone | EvalDone | CapabilitiesScored):
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

    def draw(self, now: bool = False) -> bool:
        """Draw the chart; False if it was drawn too recently and `now` is not set."""
        chart = self.chart
        if chart is None or self.run_view is None:
            return True
        if not now and not chart.due:
            return False
        lo, hi = self.settings.view.bounds(self.newest)
        smoothing = self.settings.smoothing(self.newest)
        drawing = Drawing(self._series(), lo, hi, self.settings.log_scale, smoothing)
        chart.show(drawing)
        title = Content.assemble(*legend(drawing, chart_colours(self.app))) or Content("Loss")
        self._set_titles(title, self.settings.subtitle(self.newest))
        return True

    def _series(self) -> list[Series]:
        """The current run's curves, then those of former runs: the first decides the left axis."""
        current, former = [], []
        for colour, metric in enumerate(self.settings.metrics):
            if metric in self.curves:
                current.append(Series(self.curves[metric], colour))
            for run_id, curves in self.overlaid.items():
                if metric in curves and curves[metric].columns:
                    title = self.settings.overlaid.get(run_id, run_id)
                    former.append(Series(curves[metric], colour, title))
        return [*current, *former]

    def _set_titles(self, title: Content, subtitle: str) -> None:
        text = title.markup
        with self.painting(self.edges()):
            if text != self.border_title:
                self.border_title = title
            if subtitle != self.border_subtitle:
                self.border_subtitle = subtitle

    def show_range(self, view: View) -> None:
        """Show other steps."""
        if view != self.settings.view:
            self.settings.view = view
            self.draw(now=True)  # with the columns at hand, until finer ones are read
            self.read_curves()


def _read_curves(ws: Workspace, request: _Request) -> _Answer:
    from gladius_tui.app.model.past_runs import read_curves

    lo, hi, columns = request.lo, request.hi, request.columns
    # Begin before the visible steps, so that a moving average has warmed up where they begin.
    start = max(0, lo - (hi - lo) // 2)
    extra = columns * (lo - start) // max(1, hi - lo)
    curves = read_curves(ws, request.run_id, request.metrics, start, hi, columns + extra)
    metrics = [metric for metric in request.metrics[:1] if metric in curves]
    metrics += [m for m in request.metrics if m == "bits_per_byte" and m not in metrics]
    overlaid = {run: read_curves(ws, run, metrics, lo, hi, columns) for run in request.overlaid}
    return _Answer(request, curves, overlaid)
