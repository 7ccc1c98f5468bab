"""Helpers for tests of the Dashboard: open it, read its panes and its chart."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from textual.pilot import Pilot

from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.screens.dashboard import DashboardScreen
from gladius_tui.app.widgets.pane import Pane
from tests.support.driving import until


@contextlib.asynccontextmanager
async def opened_dashboard(
    ws: Workspace, size: tuple[int, int] = (120, 36)
) -> AsyncIterator[tuple[GladiusApp, Pilot, DashboardScreen]]:
    """(app, pilot, the Dashboard) once it shows a run, or that there is none."""
    app = GladiusApp(ws)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        screen = app.screen
        assert isinstance(screen, DashboardScreen)
        await until(pilot, lambda: screen.composed and not screen.load_ticket)
        yield app, pilot, screen


def pane_text(screen: DashboardScreen, name: str) -> str:
    """The text of a pane."""
    return str(screen.query_one(f"#{name}-pane", Pane).render())


async def drawn_chart(pilot: Pilot, screen: DashboardScreen) -> str:
    """The chart's text once it is drawn."""
    pane = screen.chart_pane
    chart = pane.chart
    await until(pilot, lambda: not pane.reading and not chart.sketching and chart.sketch.text)
    await pilot.pause()
    return chart.sketch.text
