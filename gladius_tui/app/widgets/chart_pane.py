"""The Dashboard's chart with its titles, its range of steps and its cursor."""

from __future__ import annotations

from textual.content import Content

from gladius_tui.app.model.curves import View
from gladius_tui.app.model.drawing import Drawing
from gladius_tui.app.model.metrics import PANELS
from gladius_tui.app.widgets.chart import Chart
from gladius_tui.app.widgets.chart_curves import ChartCurves


class ChartPane(ChartCurves, can_focus=True):
    """The chart of one run."""

    def __init__(self) -> None:
        super().__init__()
        self.border_title = Content(PANELS["loss"])
        self.enlarged = False
        """Whether it has the whole screen."""
        self._pointing = False
        """Whether the cursor follows the mouse."""

    def draw(self, now: bool = False) -> bool:
        """Draw the chart; False if it was drawn too recently and `now` is not set."""
        if self.run_view is None or not self.chart.size:
            return True
        if not now and not self.chart.due:
            return False
        settings, newest = self.settings, self.newest
        lo, hi = settings.view.bounds(newest)
        drawing = Drawing(
            self.panels(),
            lo,
            hi,
            log=settings.log_scale,
            smoothing=settings.smoothing(newest),
            clip=settings.clip,
            cursor=settings.cursor,
        )
        self.chart.show(drawing)
        self._set_titles()
        return True

    def on_chart_drawn(self) -> None:
        self._set_titles()

    def _set_titles(self) -> None:
        shown, missing = self.chart.sketch.shown, self.chart.sketch.missing
        title = PANELS.get(shown[0], shown[0]) if shown else PANELS["loss"]
        subtitle = self.settings.subtitle(self.newest)
        if missing:
            more = f"{len(missing)} more: m" if self.enlarged else f"enter: {len(missing)} more"
            subtitle = f"{subtitle} · {more}"
        with self.painting(self.edges()):
            if title != self.border_title:
                self.border_title = title
            if subtitle != self.border_subtitle:
                self.border_subtitle = subtitle

    def show_range(self, view: View) -> None:
        """Show other steps."""
        if view != self.settings.view:
            self.settings.view = view
            self.draw(now=True)  # with the columns at hand, until finer ones are read
            self.read_curves()

    def move_cursor(self, direction: int) -> None:
        """Move the cursor by one cell of the chart."""
        lo, hi = self.settings.view.bounds(self.newest)
        cell = max(1, round((hi - lo) / max(1, self.chart.sketch.plot[1])))
        self.settings.move_cursor(direction * cell, self.newest)
        self._pointing = False
        self.draw(now=True)

    def hide_cursor(self) -> bool:
        """Show the newest values again; False if there was no cursor."""
        shown, self.settings.cursor = self.settings.cursor is not None, None
        if shown:
            self.draw(now=True)
        return shown

    def on_chart_mouse_pointed(self, message: Chart.Pointed) -> None:
        if message.step is None and not self._pointing:
            return  # the cursor was set by a key
        if message.step != self.settings.cursor:
            self.settings.cursor = message.step
            self.draw(now=True)
        self._pointing = message.step is not None

    def on_chart_mouse_zoomed(self, message: Chart.Zoomed) -> None:
        self.show_range(self.settings.view.zoomed(message.factor, self.newest, message.step))

    def on_chart_mouse_panned(self, message: Chart.Panned) -> None:
        self.show_range(self.settings.view.panned(message.share, self.newest))
