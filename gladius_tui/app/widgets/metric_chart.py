"""Owns the keys of the Dashboard's chart, and the curves behind it: read reduced out of the
history in a thread, then grown by live values until they must be read anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import work
from textual.binding import Binding
from textual.content import Content

from engine.events import AnyEvent, CapabilitiesScored, EvalDone, StepDone
from engine.run.rollup import Column, measurements
from engine.run.view import RunView
from gladius_tui.app.model.curves import SMOOTHINGS, Curve, View, title_of
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.format import axis_number

if TYPE_CHECKING:
    from gladius_tui.app.widgets.charts import Chart

DEFAULT_METRICS = ("kl", "ce", "bits_per_byte")
_LONG_RUN = 1000
"""Steps from which on the moving average is a long one from the start."""


class ChartKeys(GladiusScreen):
    """The part of the Dashboard that owns its chart."""

    KEYS: ClassVar = [
        Binding("l", "log", "Log", id="chart.log",
                tooltip="Logarithmic values, or linear ones"),
        Binding("e", "smooth", "Smooth", id="chart.smooth",
                tooltip="Moving average over the raw line: .98, .995, off, .9"),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom", id="chart.zoom_in", key_display="+/-",
                tooltip="Show half as many steps"),
        Binding("minus,underscore", "zoom(2.0)", "Zoom out", show=False, id="chart.zoom_out",
                tooltip="Show twice as many steps"),
        Binding("left", "pan(-0.25)", "Pan", show=False, id="chart.left",
                tooltip="Earlier steps, when zoomed in"),
        Binding("right", "pan(0.25)", "Pan right", show=False, id="chart.right",
                tooltip="Later steps; at the newest the chart follows the run"),
        Binding("0", "whole", "Whole", show=False, id="chart.whole", tooltip="The whole run"),
        Binding("m", "metrics", "Metrics", id="chart.metrics",
                tooltip="Choose what the chart shows"),
        Binding("o", "overlay", "Former runs", show=False, id="chart.overlay",
                tooltip="Lay former runs over this one"),
    ]  # fmt: skip

    if TYPE_CHECKING:
        board: RunView | None

    def __init__(self) -> None:
        super().__init__()
        self.view = View()
        self.log_scale = False
        self._smoothing: float | None = SMOOTHINGS[0]
        self._chose_smoothing = False
        self.metrics: tuple[str, ...] = DEFAULT_METRICS
        self.curves: dict[str, Curve] = {}
        self.others: dict[str, dict[str, Curve]] = {}
        """Curves of former runs, by run id."""
        self._titles: dict[str, str] = {}
        self._reading = 0
        """Number of the last reading; an older one is dropped when it comes."""
        self._live: list[tuple[str, int, float | None]] = []
        """Live values that came while the curves were being read."""
        self._busy = False
        self._columns = 0
        """Columns that the last reading was for."""

    chart: Chart | None = None
    """None before the first paint, which does not wait for plotext."""

    async def make_chart(self) -> None:
        """Put the chart into its pane."""
        charts = await asyncio.to_thread(import_module, "gladius_tui.app.widgets.charts")
        if self.chart is None and self.is_mounted:
            chart = charts.Chart(id="chart")
            await self.query_one("#chart-pane").mount(chart)
            self.chart = chart
            self.call_after_refresh(self.read_curves)

    @property
    def newest(self) -> int:
        """The run's newest step."""
        return (self.board.step or 0) if self.board is not None else 0

    @property
    def smoothing(self) -> float | None:
        """The factor of the moving average: as chosen, else as suits the run's length."""
        if self._chose_smoothing or self.newest >= _LONG_RUN:
            return self._smoothing
        return 0.9

    # Curves

    def open_chart(self, board: RunView) -> None:
        """Show another run (or the same, read anew)."""
        self.curves = {}
        self.read_curves()

    def read_curves(self) -> None:
        """Read what is shown out of the history; what is drawn stays until that is done."""
        chart = self.chart
        if self.board is None or chart is None:
            return
        self._reading += 1
        self._busy = True
        self._live = []
        self._columns = chart.plot_columns
        self._read_curves(
            self._reading,
            self.board.run_id,
            self.metrics,
            tuple(self._titles),
            self.view.bounds(self.newest),
            self.newest,
            self._columns,
        )

    def on_chart_resized(self) -> None:
        """A curve has a column for each of the chart's; it may be laid out after it was read."""
        if self.chart is not None and self.chart.size and self.chart.plot_columns != self._columns:
            self.read_curves()

    @work(thread=True, group="curves", exit_on_error=False)
    def _read_curves(
        self,
        number: int,
        run_id: str,
        metrics: Sequence[str],
        others: Sequence[str],
        bounds: tuple[int, int],
        newest: int,
        columns: int,
    ) -> None:
        from gladius_tui.app.model import past_runs as past

        ws = self.gladius.ws
        if number != self._reading:
            return  # another one was asked for since
        lo, hi = bounds
        # Before what is shown, so that a moving average is warm where it comes into sight.
        before = max(0, lo - (hi - lo) // 2)
        found = past.read_curves(
            ws, run_id, metrics, before, hi, columns + columns * (lo - before) // max(1, hi - lo)
        )
        overlaid = [m for m in metrics[:1] if m in found]
        overlaid += [m for m in metrics if m == "bits_per_byte" and m not in overlaid]
        laid = {other: past.read_curves(ws, other, overlaid, lo, hi, columns) for other in others}
        self.app.call_later(self._curves_read, number, found, laid, newest, columns)

    def _curves_read(
        self,
        number: int,
        found: dict[str, list[Column]],
        laid: dict[str, dict[str, list[Column]]],
        newest: int,
        columns: int,
    ) -> None:
        if number != self._reading:
            return
        self._busy = False
        self.curves = {
            metric: Curve(metric, read, max(columns, len(read)), newest)
            for metric, read in found.items()
        }
        self.others = {
            run: {metric: Curve(metric, read) for metric, read in curves.items()}
            for run, curves in laid.items()
        }
        for metric, step, value in self._live:
            if metric in self.curves and step > newest:
                self.curves[metric].add(step, value)
        self._live = []
        self.draw_chart(now=True)

    def grow_chart(self, events: Sequence[AnyEvent]) -> None:
        """Take live values in."""
        whole = True
        for event in events:
            if not isinstance(event, StepDone | EvalDone | CapabilitiesScored):
                continue
            for metric, value in measurements(event):
                if metric not in self.metrics:
                    continue
                if self._busy:
                    self._live.append((metric, event.step, value))
                elif metric in self.curves and self.view.end is None:
                    whole &= self.curves[metric].add(event.step, value)
        if not whole and not self._busy:
            self.read_curves()

    # Drawing

    def draw_chart(self, now: bool = False) -> bool:
        """Draw the chart; False where it was drawn so recently that it is not done yet."""
        chart = self.chart
        if chart is None or self.board is None:
            return True
        if not now and not chart.due:
            return False
        from gladius_tui.app.theme import chart_colours
        from gladius_tui.app.widgets.charts import Drawing, Series, legend

        lo, hi = self.view.bounds(self.newest)
        series = []
        for place, metric in enumerate(self.metrics):
            for run, curves in self.others.items():
                if metric in curves and curves[metric].columns:
                    series.append(Series(curves[metric], place, self._titles.get(run, run)))
        for place, metric in enumerate(self.metrics):
            if metric in self.curves:
                series.append(Series(self.curves[metric], place))
        # The first one decides the axis on the left: one of this run.
        series.sort(key=lambda s: bool(s.run))
        drawing = Drawing(series, lo, hi, self.log_scale, self.smoothing)
        chart.show(drawing)
        title = Content.assemble(*legend(drawing, chart_colours(self.app))) or Content("Loss")
        cast(Any, self.query_one("#chart-pane")).entitle(title, self._subtitle(lo, hi))
        return True

    def _subtitle(self, lo: int, hi: int) -> str:
        average = "raw" if self.smoothing is None else f"EMA {self.smoothing:g}".replace("0.", ".")
        scale = "log" if self.log_scale else "lin"
        parts = [average, scale]
        if self.view.span is not None:
            where = (
                "newest" if self.view.end is None else f"{axis_number(lo)}-{axis_number(hi - 1)}"
            )
            parts.append(f"{self.view.span:,} steps, {where}")
        return " · ".join(parts)

    # Keys

    def action_log(self) -> None:
        self.log_scale = not self.log_scale
        self.draw_chart(now=True)

    def action_smooth(self) -> None:
        at = SMOOTHINGS.index(self.smoothing)
        self._smoothing = SMOOTHINGS[(at + 1) % len(SMOOTHINGS)]
        self._chose_smoothing = True
        self.draw_chart(now=True)

    def action_zoom(self, factor: float) -> None:
        self._look(self.view.zoomed(factor, self.newest))

    def action_pan(self, share: float) -> None:
        self._look(self.view.panned(share, self.newest))

    def action_whole(self) -> None:
        self._look(View())

    def _look(self, view: View) -> None:
        if view != self.view:
            self.view = view
            self.draw_chart(now=True)  # with the columns that are there, until finer ones come
            self.read_curves()

    @work(exclusive=True, group="pick", exit_on_error=False)
    async def action_metrics(self) -> None:
        """Choose what the chart shows."""
        from gladius_tui.app.dialogs.pick import Pick
        from gladius_tui.app.model import past_runs as past

        if self.board is None:
            return
        ws, run = self.gladius.ws, self.board.run_id
        known = await asyncio.to_thread(past.read_metrics, ws, run)
        choices = [(metric, title_of(metric)) for metric in known]
        text = "Values of one unit share the left axis; others stand on the right."
        chosen = await self.app.push_screen_wait(Pick("Metrics", text, choices, self.metrics))
        if chosen:
            self.metrics = tuple(chosen)
            self.read_curves()

    @work(exclusive=True, group="pick", exit_on_error=False)
    async def action_overlay(self) -> None:
        """Choose former runs to lay over this one."""
        from gladius_tui.app.dialogs.pick import Pick
        from gladius_tui.app.model import past_runs as past

        if self.board is None:
            return
        ws, run = self.gladius.ws, self.board.run_id
        found = await asyncio.to_thread(past.former_runs, ws, run)
        if not found:
            self.notify("There is no other run in this root's history", markup=False)
            return
        labels = {
            run_id: f"{time.strftime('%d %b %H:%M', time.localtime(began))} {preset}".strip()
            for run_id, preset, began in found
        }
        chosen = await self.app.push_screen_wait(
            Pick("Former runs", "Drawn fainter, over the same steps.", list(labels.items()),
                 list(self._titles))
        )  # fmt: skip
        if chosen is not None:
            self._titles = {run_id: labels[run_id] for run_id in chosen}
            self.others = {}
            self.read_curves()
