"""The Dashboard's keys for the chart: scale, smoothing, range, metrics, former runs."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from textual import work
from textual.binding import Binding

from gladius_tui.app.model.curves import View
from gladius_tui.app.model.metrics import choice_of, in_order
from gladius_tui.app.screens.run_display import RunDisplay
from gladius_tui.app.widgets.chart_pane import ChartPane


class ChartKeys(RunDisplay):
    """A run's display with keys for its chart."""

    BINDINGS: ClassVar = [
        Binding("l", "log", "Log", id="chart.log", tooltip="Logarithmic or linear values"),
        Binding("e", "smooth", "Smooth", id="chart.smooth",
                tooltip="Factor of the moving average over the raw line: .98, .995, off, .9"),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom", id="chart.zoom_in", key_display="+/-",
                tooltip="Show half as many steps"),
        Binding("minus,underscore", "zoom(2.0)", "Zoom out", show=False, id="chart.zoom_out",
                tooltip="Show twice as many steps"),
        Binding("left", "pan(-0.25)", "Pan left", show=False, id="chart.left",
                tooltip="Earlier steps, when zoomed in"),
        Binding("right", "pan(0.25)", "Pan right", show=False, id="chart.right",
                tooltip="Later steps; at the newest step the chart follows the run"),
        Binding("0", "whole", "Whole run", show=False, id="chart.whole",
                tooltip="Show the whole run"),
        Binding("left_square_bracket", "cursor(-1)", "Cursor", show=False, id="chart.cursor_left",
                tooltip="Read all curves at an earlier step"),
        Binding("right_square_bracket", "cursor(1)", "Cursor", show=False, id="chart.cursor_right",
                tooltip="Read all curves at a later step; esc shows the newest values"),
        Binding("x", "clip", "All values", show=False, id="chart.clip",
                tooltip="Show all values, or leave out the smallest and the largest 1%"),
        Binding("m", "metrics", "Metrics", id="chart.metrics",
                tooltip="Choose the metrics; each unit has a panel"),
        Binding("o", "overlay", "Former runs", show=False, id="chart.overlay",
                tooltip="Lay former runs over this one"),
    ]  # fmt: skip

    @property
    def chart_pane(self) -> ChartPane:
        """The pane with the chart."""
        return self.query_one(ChartPane)

    def action_log(self) -> None:
        pane = self.chart_pane
        pane.settings.log_scale = not pane.settings.log_scale
        pane.draw(now=True)

    def action_smooth(self) -> None:
        pane = self.chart_pane
        pane.settings.next_smoothing(pane.newest)
        pane.draw(now=True)

    def action_clip(self) -> None:
        pane = self.chart_pane
        pane.settings.clip = not pane.settings.clip
        pane.draw(now=True)

    def action_cursor(self, direction: int) -> None:
        if self.run_view is not None:
            self.chart_pane.move_cursor(direction)

    def action_zoom(self, factor: float) -> None:
        pane = self.chart_pane
        pane.show_range(pane.settings.view.zoomed(factor, pane.newest, pane.settings.cursor))

    def action_pan(self, share: float) -> None:
        pane = self.chart_pane
        pane.show_range(pane.settings.view.panned(share, pane.newest))

    def action_whole(self) -> None:
        self.chart_pane.show_range(View())

    @work(exclusive=True, group="pick", exit_on_error=False)
    async def action_metrics(self) -> None:
        """Choose the metrics that the chart shows."""
        from gladius_tui.app.dialogs.pick import Pick
        from gladius_tui.app.model.past_runs import read_metrics

        if self.run_view is None:
            return
        pane = self.chart_pane
        known = await asyncio.to_thread(read_metrics, self.gladius.ws, self.run_view.run_id)
        items = [(metric, choice_of(metric)) for metric in in_order(known)]
        text = "Metrics of one unit share a panel; the panels share the axis of steps."
        chosen = await self.app.push_screen_wait(
            Pick("Metrics", text, items, pane.settings.metrics)
        )
        if chosen:
            pane.settings.metrics = tuple(chosen)
            pane.read_curves()

    @work(exclusive=True, group="pick", exit_on_error=False)
    async def action_overlay(self) -> None:
        """Choose former runs to lay over this one."""
        from gladius_tui.app.dialogs.pick import Pick
        from gladius_tui.app.model.past_runs import former_runs

        if self.run_view is None:
            return
        pane = self.chart_pane
        found = await asyncio.to_thread(former_runs, self.gladius.ws, self.run_view.run_id)
        if not found:
            self.notify("This root has no other training run", markup=False)
            return
        titles = {
            run_id: f"{time.strftime('%d %b %H:%M', time.localtime(started))} {preset}".strip()
            for run_id, preset, started in found
        }
        text = "Each has its own colour: the first metric of each panel, to the run's end."
        chosen = await self.app.push_screen_wait(
            Pick("Former runs", text, list(titles.items()), list(pane.settings.overlaid))
        )
        if chosen is not None:
            pane.settings.overlaid = {run_id: titles[run_id] for run_id in chosen}
            pane.overlaid = {}
            pane.read_curves()
