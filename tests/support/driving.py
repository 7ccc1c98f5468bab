"""Helpers for tests of the app: open it, wait in it, start a toy run, read what a screen shows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

import gladius_tui.commands  # noqa: F401  (registers every command)
from engine.run.lock import lock_owner
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.shell import app as group
from tests.support.paths import REPO

TOY = REPO / "tests" / "support" / "toy_job.py"


async def until(pilot: Pilot, condition: Callable[[], object], seconds: float = 20.0) -> object:
    """Wait until the condition is true; returns its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not become true in time"
        await pilot.pause(0.05)
    return found


@contextlib.asynccontextmanager
async def opened(
    ws: Workspace, mode: str, size: tuple[int, int] = (120, 36), launch: tuple[str, ...] = ()
) -> AsyncIterator[tuple[GladiusApp, Pilot]]:
    """The app at a mode, once its first screen is mounted."""
    app = GladiusApp(ws, mode, launch, group.commands)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.current_mode == mode and mode in app.screens)
        await pilot.pause()
        yield app, pilot


@contextlib.contextmanager
def toy_run(ws: Workspace, **config: object) -> Iterator[subprocess.Popen]:
    """A real runner with the toy job, running and ready to be attached to."""
    config = {"seconds": 0.02, **config}
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(ws.root), json.dumps(config), "--quiet"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while lock_owner(ws, "train") is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text_of(screen: Screen) -> str:
    """Everything that a screen shows, as lines of text."""
    return "\n".join(
        "".join(segment.text for segment in line) for line in screen._compositor.render_strips()
    )


def static_text(screen: Screen, selector: str) -> str:
    """The text of a Static."""
    return str(screen.query_one(selector, Static).visual)
