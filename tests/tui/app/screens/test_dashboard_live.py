"""The Dashboard with a real runner and a toy job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest
from textual.widgets import OptionList

from engine.run.history import History
from engine.run.view import RunView
from gladius_tui.app.screens.dashboard import DashboardScreen
from gladius_tui.app.widgets.key_bar import KeyBar
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.top_bar import TopBar
from tests.support.dashboard import drawn_chart, opened_dashboard, pane_text
from tests.support.driving import REPO, TOY, until


@pytest.fixture
def toy(root) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a runner with the toy job in a session of its own, as nohup would."""
    started: list[subprocess.Popen] = []

    def start(*options: str, **config) -> subprocess.Popen:
        process = subprocess.Popen(
            [
                sys.executable,
                str(TOY),
                str(root.root),
                msgspec.json.encode(config).decode(),
                *options,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def attached(pilot, screen: DashboardScreen) -> RunView:
    """The run, once live steps arrive."""
    await until(pilot, lambda: screen.attached_run and screen.run_view and screen.run_view.step)
    assert screen.run_view is not None
    return screen.run_view


async def test_a_run_started_elsewhere_is_attached_and_controlled(root, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened_dashboard(root) as (app, pilot, screen):
        run = await attached(pilot, screen)
        first = run.step or 0
        await until(pilot, lambda: (run.step or 0) > first + 10)
        await until(pilot, lambda: "training" in pane_text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: run.status == "paused" and not screen.pending_commands)
        paused_at = run.step
        await until(
            pilot,
            lambda: f"pause requested → paused at step {paused_at:,}" in pane_text(screen, "log"),
        )
        await until(pilot, lambda: "paused" in pane_text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: run.status == "training" and (run.step or 0) > paused_at)

        await pilot.press("c")
        await until(
            pilot, lambda: "checkpoint requested → saved at step" in pane_text(screen, "log")
        )
        assert run.checkpoint is not None

        await pilot.press("s")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.press("escape")
        assert process.poll() is None, "the dialog was cancelled"
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen.query(OptionList).first(), OptionList))
        await pilot.press("enter")
        await until(pilot, lambda: run.status == "ended")
        await until(pilot, lambda: process.poll() == 0)
        await until(pilot, lambda: not screen.attached_run)
        await until(pilot, lambda: "stopped" in pane_text(screen, "run"))
        await pilot.press("p")
        assert not screen.pending_commands, "no run is attached"


async def test_a_command_is_shown_until_it_is_answered(root, toy):
    toy("--quiet", seconds=0.02, faults={1: (1, "deaf")})
    async with opened_dashboard(root) as (_, pilot, screen):
        await attached(pilot, screen)
        await pilot.press("p", "c", "c")
        pane = screen.query_one("#run-pane", Pane)
        assert str(pane.border_subtitle) == "pause requested … · checkpoint requested …"
        await pilot.pause(0.5)
        assert "requested" in str(pane.border_subtitle), "the worker ignores commands"


async def test_the_chart_grows_to_what_the_history_holds(root, toy):
    toy("--quiet", seconds=0.005, steps=600)
    async with opened_dashboard(root) as (_, pilot, screen):
        run = await attached(pilot, screen)
        pane = screen.chart_pane
        pane.settings.metrics = ("loss",)
        pane.read_curves()
        await until(pilot, lambda: run.status == "completed", 40)
        await drawn_chart(pilot, screen)
        curve = pane.curves["loss"]
        history = History(root.history_file)
        stored = history.series(run.run_id, "loss", 0, 601, 10_000)
        history.close()
        values = {c.start: c.last for c in stored if c.count}
        assert len(values) == 600
        for column in curve.columns:
            inside = [v for n, v in values.items() if column.start <= n < column.stop]
            if inside:
                assert (column.low, column.high) == (min(inside), max(inside))
                assert column.last == inside[-1]


async def test_a_killed_runner_is_shown_and_a_resumed_run_is_followed(root, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened_dashboard(root) as (_, pilot, screen):
        run = await attached(pilot, screen)
        await until(pilot, lambda: (run.step or 0) > 20)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        await until(pilot, lambda: run.status == "failed")
        await until(pilot, lambda: "The runner was killed" in pane_text(screen, "run"))
        toy("--quiet", "--resume", seconds=0.02)
        await until(pilot, lambda: screen.run_view and screen.run_view.attempt == 2)
        reached = run.step or 0
        await until(pilot, lambda: screen.run_view and (screen.run_view.step or 0) > reached)


async def test_a_worker_that_died_is_restarting_not_training(root, toy):
    toy("--quiet", seconds=0.02, faults={1: (30, "kill")})
    async with opened_dashboard(root) as (_, pilot, screen):
        run = await attached(pilot, screen)
        await until(pilot, lambda: "restarting 1/3" in pane_text(screen, "run"))
        await until(pilot, lambda: "restarting 1/3" in str(screen.query_one(TopBar).render()))
        await until(pilot, lambda: run.status == "training" and run.attempt == 2)
        await until(pilot, lambda: "● training" in str(screen.query_one(TopBar).render()))


async def test_a_hidden_dashboard_draws_nothing_and_is_redrawn_when_shown(root, toy):
    toy("--quiet", seconds=0.02)
    async with opened_dashboard(root) as (app, pilot, screen):
        run = await attached(pilot, screen)
        await pilot.press("3")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.pause(0.4)
        before = pane_text(screen, "run")
        seen = run.step or 0
        await until(pilot, lambda: (run.step or 0) > seen + 20)
        assert pane_text(screen, "run") == before
        await pilot.press("4")
        await until(pilot, lambda: pane_text(screen, "run") != before)


async def test_two_viewers_follow_one_run(root, toy):
    toy("--quiet", seconds=0.02)
    async with opened_dashboard(root) as (_, pilot, screen):
        run = await attached(pilot, screen)
        from engine.events import Pause
        from engine.run.control import attach

        with attach(root) as other:
            other.send(Pause())
        await until(pilot, lambda: run.status == "paused")
        await until(pilot, lambda: "paused at step" in pane_text(screen, "log"))


async def test_the_footer_shows_the_keys_that_apply(root, toy):
    def footer() -> str:
        return str(screen.query_one(KeyBar).render())

    toy("--quiet", seconds=0.02)
    async with opened_dashboard(root) as (app, pilot, screen):
        await attached(pilot, screen)
        await until(pilot, lambda: "p Pause  c Checkpoint  s Stop  f Finish" in footer())
        await pilot.press("p")
        await until(pilot, lambda: "p Resume" in footer())
        await pilot.press("s", "s")
        await until(pilot, lambda: "r Resume" in footer() and "Stop" not in footer())
        await pilot.press("r")
        assert app.launched == [("resume",)]
