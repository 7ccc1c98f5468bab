"""Show a training run in the Dashboard's panes and chart, redrawn as it changes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.widgets import Static

from engine.events import AnyEvent, RunStarted
from engine.run.view import Status
from gladius_tui.app.redraw import Redraw
from gladius_tui.app.screens.run_follower import RunFollower
from gladius_tui.app.widgets.advice import Advice
from gladius_tui.app.widgets.chart_pane import ChartPane
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.pane_grid import ALL_CHANGES, PaneGrid

if TYPE_CHECKING:
    from gladius_tui.app.dialogs.lens import Lens

wall_clock = time.time
"""The time that ages are measured from."""
_AGE_SECONDS = 10.0
"""Interval at which ages such as `6 min ago` are redrawn if nothing else changes."""

NO_RUN = """\
No run yet.

Press 3 to choose a config and start a run. The preset nano needs no GPU, and its expert is
installed with pip (press 2 to download it). Runs that are started elsewhere appear here by
themselves."""


class RunDisplay(RunFollower):
    """Panes and chart of the followed run."""

    def __init__(self) -> None:
        super().__init__()
        self.redraw = Redraw(self, self._draw)
        self._stale: set[str] = set()
        """What has changed since it was drawn."""
        self._status: Status | None = None
        """The run's status at the last refresh of the key bar."""
        self.lens: Lens | None = None
        """The lens, while it is open over this screen."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="no-run", markup=False)
        yield PaneGrid()
        yield Advice()

    def on_mount(self) -> None:
        self.set_interval(_AGE_SECONDS, self._refresh_ages)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """Do what would delay the first paint."""
        self.load_last_run()

    def on_screen_resume(self) -> None:
        # The last drawing is shown at once, then what has changed since.
        self.call_after_refresh(self.redraw_all)

    def on_resize(self) -> None:
        self.call_after_refresh(self.redraw_all)

    def on_pane_resized(self, message: Pane.Resized) -> None:
        self.mark_changed(*message.pane.shows)

    def run_loading(self) -> None:
        if self.run_view is None:
            self._show_notice("reading the history …")

    def run_loaded(self) -> None:
        run = self.run_view
        if run is None:
            self._show_notice(NO_RUN)
            self.redraw_all()
            return
        if self.lens is not None:
            self.lens.show(run)
        self.remove_class("-empty")
        self.query_one(ChartPane).open(run)
        self.call_after_refresh(self.redraw_all)  # the panes may have no size before

    def events_taken(self, events: Sequence[AnyEvent]) -> None:
        chart = self.query_one(ChartPane)
        if any(isinstance(event, RunStarted) for event in events):
            chart.read_curves()
        chart.grow(events)
        self.mark_changed()

    def mark_changed(self, *names: str) -> None:
        """Redraw soon what depends on these (see `RunView.changed`), unless another screen is
        shown."""
        self._stale |= set(names)
        if self.is_current or self.lens is not None:
            self.redraw.schedule()

    def redraw_all(self) -> None:
        """Redraw everything now."""
        self._stale |= ALL_CHANGES
        self._draw()

    def _show_notice(self, text: str) -> None:
        """Show a text instead of the panes."""
        self.add_class("-empty")
        self.query_one("#no-run", Static).update(text)

    def _refresh_ages(self) -> None:
        if self.run_view is not None and self.is_current:
            self.mark_changed("run")

    def _draw(self) -> None:
        if not self.is_mounted or not self.is_running:
            self.redraw.scheduled = False
            return
        self.redraw.drawn()
        run = self.run_view
        if run is not None and run.status != self._status:
            self._status = run.status
            self.refresh_bindings()
        changed = self._stale | (run.take_changes() if run is not None else set())
        if self.lens is not None and "probes" in changed:
            self.lens.refresh_lens()
        if not self.is_current:
            self._stale = changed  # drawn when this screen is shown again
            return
        self._stale = set()
        self.query_one(PaneGrid).show(run, changed, wall_clock())
        if changed & {"chart", "step", "eval"} and not self.query_one(ChartPane).draw():
            self.mark_changed("chart")
        if changed & {"run"}:
            former = bool(self.viewed_run)
            self.query_one(Advice).show(run, former=former, width=self.size.width)
        if changed & {"run", "step"} and (self.has_class("-w0") or self.has_class("-h0")):
            self.query_one("#summary", Static).update(self.summary(), layout=False)
