"""Pictures of the Dashboard and its lens: a recorded run at three sizes, in two themes.

Update them with --snapshot-update after looking at what has changed.
"""

from __future__ import annotations

import re
import time

import pytest

from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.screens import run_display
from gladius_tui.app.screens.dashboard import DashboardScreen
from tests.support.recording import recorded, write_run

EVENTS = recorded()


@pytest.fixture(autouse=True)
def same_everywhere(tmp_path, monkeypatch):
    """The pictures do not depend on the machine."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.delenv("NO_COLOR", raising=False)
    time.tzset()
    plain = GladiusApp.export_screenshot

    def without_id(app, **options) -> str:
        """The id in a picture depends on more than its content."""
        return re.sub(r"terminal-\d+", "terminal", plain(app, **options))

    monkeypatch.setattr(GladiusApp, "export_screenshot", without_id)
    monkeypatch.setattr(run_display, "wall_clock", lambda: EVENTS[-1].time + 400)
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def app(tmp_path) -> GladiusApp:
    ws = Workspace.find(tmp_path / "root")
    write_run(ws, EVENTS)
    return GladiusApp(ws)


async def still(pilot) -> None:
    """Wait until everything is read and drawn."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        await pilot.pause(0.1)
        screen = pilot.app.screen
        if not isinstance(screen, DashboardScreen) or not screen.composed:
            continue
        pane = screen.chart_pane
        drawing = pane.reading or pane.chart.sketching
        busy = screen.load_ticket or screen.redraw.scheduled or drawing
        if not busy and pane.chart.sketch.plot[1]:
            break
    await pilot.pause(0.3)


@pytest.mark.parametrize("theme", ["textual-dark", "textual-light"])
@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 50)], ids=lambda size: f"{size[0]}")
def test_a_finished_run(snap_compare, app, theme, size):
    app.theme = theme
    assert snap_compare(app, terminal_size=size, run_before=still)


def test_the_lens(snap_compare, app):
    async def look(pilot) -> None:
        await still(pilot)
        await pilot.press("v", "right", "right", "right")
        await pilot.pause(0.3)

    assert snap_compare(app, terminal_size=(120, 36), run_before=look)
