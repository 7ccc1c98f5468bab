"""Pictures of the Dashboard and its lens: a recorded run at three sizes, in two themes.

Update them with --snapshot-update after looking at what has changed.
"""

from __future__ import annotations

import re
import time

import msgspec
import pytest

from engine.events import LayerGroup, LayerStats
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


def test_the_layers_beside_the_enlarged_parameters(snap_compare, tmp_path):
    """A dead block, one that is not finite, and values of two decades."""
    attention = (1e-3, 2e-3, 8e-4, 1e-5, 1.5e-3, 3e-3)
    mlp = (1.2e-3, 2.5e-3, None, 9e-4, 1e-3, 4e-3)
    moved = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
    stats = LayerStats(
        step=219,
        interval=5,
        groups=(
            LayerGroup(kind="attention", update=attention, moved=moved),
            LayerGroup(kind="mlp", update=mlp, moved=moved[::-1]),
            LayerGroup(kind="embeddings", update=(6e-4,), moved=(0.1,)),
            LayerGroup(kind="head", update=(0.0,), moved=(0.12,)),
        ),
    )
    ws = Workspace.find(tmp_path / "root")
    write_run(ws, [*EVENTS[:-1], stats, msgspec.structs.replace(EVENTS[-1], seq=0)])

    async def enlarge(pilot) -> None:
        await still(pilot)
        pilot.app.screen.set_focus(pilot.app.screen.query_one("#parameters-pane"))
        await pilot.press("enter")
        await pilot.pause(0.5)

    assert snap_compare(GladiusApp(ws), terminal_size=(120, 36), run_before=enlarge)
