"""The Dashboard, by its keys: with a recorded run, and with a real runner and a toy job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest
from textual.widgets import OptionList, SelectionList

from engine.events import CapabilitiesScored, CapabilityScore, ProbeRead, RunEnded
from engine.run.history import History
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.dialogs.pick import Pick
from gladius_tui.app.model.board import RunView
from gladius_tui.app.screens.dashboard import DashboardScreen
from gladius_tui.app.widgets.key_bar import KeyBar
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.pane_grid import TABS
from gladius_tui.format import NONE
from tests.support.driving import REPO, TOY, until
from tests.support.recording import recorded, write_run

EVENTS = recorded()


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "r"))
    (tmp_path / "r").mkdir(mode=0o700)


@pytest.fixture
def ws(tmp_path) -> Workspace:
    made = Workspace.find(tmp_path / "root")
    made.create()
    return made


@contextlib.asynccontextmanager
async def opened(ws: Workspace, size=(120, 36)):
    """(app, pilot, the Dashboard) once it shows a run, or that there is none."""
    app = GladiusApp(ws)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        screen = app.screen
        assert isinstance(screen, DashboardScreen)
        await until(pilot, lambda: screen.composed and not screen.load_ticket)
        await until(pilot, lambda: screen.chart_pane.chart is not None)
        yield app, pilot, screen


def text(screen: DashboardScreen, name: str) -> str:
    """The text of a pane."""
    return str(screen.query_one(f"#{name}-pane", Pane).render())


async def drawn(pilot, screen: DashboardScreen) -> str:
    """The chart's text once it is drawn."""
    pane = screen.chart_pane
    chart = pane.chart
    assert chart is not None
    await until(pilot, lambda: not pane.reading and not chart._sketching and chart._text.plain)
    await pilot.pause()
    return chart._text.plain


# A recorded run


async def test_a_finished_run_is_shown_whole(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (_, pilot, screen):
        chart = await drawn(pilot, screen)
        assert "finished" in text(screen, "run") and "step 220 of 220" in text(screen, "run")
        assert "held-out 1.961" in text(screen, "run")
        assert "6,524,160" in text(screen, "parameters")
        assert "SmolLM2 135M" in text(screen, "experts") and "20%" in text(screen, "experts")
        assert "RAM" in text(screen, "hardware")
        assert "Route this query" in text(screen, "sample")
        assert "completed at step 220" in text(screen, "log")
        assert "200" in chart and "•" in chart
        title = str(screen.query_one("#chart-pane").border_title)
        for name in ("kl 2.77", "ce 3.57", "held-out 1.96"):
            assert name in title


async def test_keys_of_the_chart(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (_, pilot, screen):
        whole = await drawn(pilot, screen)

        async def after(*keys: str) -> tuple[str, str]:
            await pilot.press(*keys)
            await pilot.pause(0.1)
            return await drawn(pilot, screen), str(screen.query_one("#chart-pane").border_subtitle)

        chart, subtitle = await after("l")
        assert chart != whole and "log" in subtitle
        chart, subtitle = await after("l")
        assert chart == whole and "lin" in subtitle
        seen = [subtitle.split(" ·")[0]]
        for _ in range(4):
            _, subtitle = await after("e")
            seen.append(subtitle.split(" ·")[0])
        assert seen == ["EMA .9", "EMA .98", "EMA .995", "raw", "EMA .9"]
        chart, subtitle = await after("plus")
        assert chart != whole and "newest" in subtitle
        chart, subtitle = await after("left")
        assert "newest" not in subtitle
        chart, subtitle = await after("right")
        assert "newest" in subtitle
        chart, subtitle = await after("minus", "minus")
        assert chart == whole
        await after("plus", "plus", "plus", "left")
        chart, _ = await after("0")
        assert chart == whole


async def test_metrics_are_chosen_and_other_units_use_the_right_axis(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (app, pilot, screen):
        await drawn(pilot, screen)
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        choices = app.screen.query_one(SelectionList)
        assert {"loss", "lr", "tokens_per_sec", "kl/smollm2"} <= {
            choices.get_option_at_index(n).value for n in range(choices.option_count)
        }
        choices.deselect_all()
        choices.select("kl").select("lr")
        await pilot.press("enter")
        settings = screen.chart_pane.settings
        await until(pilot, lambda: settings.metrics == ("kl", "lr"))
        await pilot.pause(0.2)
        chart = await drawn(pilot, screen)
        assert "e-4" in chart, "the axis of the learning rate"
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("escape")
        assert settings.metrics == ("kl", "lr")


async def test_a_former_run_is_overlaid(ws):
    write_run(ws, EVENTS[:300], "before")
    write_run(ws, EVENTS, "now")
    async with opened(ws) as (app, pilot, screen):
        alone = await drawn(pilot, screen)
        assert screen.run_view is not None and screen.run_view.run_id == "now"
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("space", "enter")
        await until(pilot, lambda: screen.chart_pane.overlaid)
        await pilot.pause(0.2)
        chart = screen.chart_pane.chart
        await until(pilot, lambda: chart and chart._text.plain != alone)
        assert list(screen.chart_pane.overlaid) == ["before"]
        assert "demo" in str(screen.query_one("#chart-pane").border_title)


async def test_the_lens_opens_over_it(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        assert "step 220" in str(app.screen.query_one("#lens").border_title)
        await pilot.press("v")
        assert app.screen is screen


async def test_the_lens_is_updated_at_every_evaluation(ws):
    readings = [e for e in EVENTS if isinstance(e, ProbeRead)]
    write_run(ws, [e for e in EVENTS if e.step < 100 and not isinstance(e, RunEnded)])
    async with opened(ws) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        title = app.screen.query_one("#lens")
        await until(pilot, lambda: "step 88" in str(title.border_title))
        screen.take_events([msgspec.structs.replace(e, seq=0) for e in readings[-4:]])
        await until(pilot, lambda: "step 220" in str(title.border_title))
        assert "at step 88" in str(app.screen.query_one("#lens-body").render())  # type: ignore[union-attr]


async def test_capabilities_are_shown_instead_of_the_log(ws):
    score = CapabilityScore(capability="json", right=1, asked=4)
    last = EVENTS[-1]
    scores = CapabilitiesScored(who="student", step=220, seq=last.seq + 1, scores=(score,))
    write_run(ws, [*EVENTS, scores])
    async with opened(ws, (120, 24)) as (_, pilot, screen):
        await drawn(pilot, screen)
        pane, log = (screen.query_one(f"#{name}-pane", Pane) for name in ("capabilities", "log"))
        assert log.display and not pane.display
        await pilot.press("a")
        await until(pilot, lambda: "1/4" in text(screen, "capabilities"))
        assert pane.display and not log.display
        await pilot.press("a")
        await pilot.pause()
        assert log.display and not pane.display


async def test_capabilities_are_in_the_grid_if_there_is_room(ws):
    score = CapabilityScore(capability="json", right=1, asked=4)
    scores = CapabilitiesScored(who="student", step=220, scores=(score,))
    write_run(ws, [*EVENTS, scores])
    async with opened(ws, (120, 40)) as (_, pilot, screen):
        await until(pilot, lambda: screen.query_one("#capabilities-grid-pane").display)
        await until(pilot, lambda: "json" in text(screen, "capabilities-grid"))
        assert "1/4" in text(screen, "capabilities-grid")
        await pilot.resize_terminal(100, 24)
        await until(pilot, lambda: not screen.query_one("#capabilities-grid-pane").display)
        await until(pilot, lambda: "disk" in text(screen, "hardware"))


async def test_the_footer_shows_the_keys_that_apply(ws, toy):
    def footer() -> str:
        return str(screen.query_one(KeyBar).render())

    toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        await attached(pilot, screen)
        await until(pilot, lambda: "p Pause  c Checkpoint  s Stop  f Finish" in footer())
        await pilot.press("p")
        await until(pilot, lambda: "p Resume" in footer())
        await pilot.press("s", "s")
        await until(pilot, lambda: "r Resume" in footer() and "Stop" not in footer())
        await pilot.press("r")
        assert app.launched == [("resume",)]


@pytest.mark.parametrize("size", [(80, 24), (70, 17), (99, 40)])
async def test_narrow_it_shows_one_pane_at_a_time(ws, size):
    write_run(ws, EVENTS)
    async with opened(ws, size) as (_, pilot, screen):
        await drawn(pilot, screen)
        chart = screen.chart_pane.chart
        assert chart is not None and chart.size.height >= 4
        for name in (*TABS[1:], TABS[0]):
            await pilot.press("tab")
            await pilot.pause()
            shown = [pane.id for pane in screen.query(Pane) if pane.display]
            assert shown == [f"{name}-pane"]
            await until(pilot, lambda name=name: text(screen, name).strip())
        await pilot.press("shift+tab")
        assert screen.query_one("#log-pane").display
        await pilot.click("#tabs", offset=(2, 0))
        await pilot.pause()
        assert screen.query_one("#run-pane").display


@pytest.mark.parametrize("size", [(59, 40), (120, 15), (40, 5)])
async def test_tiny_it_is_one_line(ws, size):
    write_run(ws, EVENTS)
    async with opened(ws, size) as (_, pilot, screen):
        await pilot.pause(0.3)
        assert not screen.query_one("#body").display
        line = str(screen.query_one("#summary").render())  # type: ignore[union-attr]
        assert "finished" in line and "step 220" in line and "\n" not in line


async def test_without_a_run_it_shows_what_to_do(ws):
    async with opened(ws) as (_, pilot, screen):
        notice = str(screen.query_one("#no-run").render())  # type: ignore[union-attr]
        assert "Press 3" in notice
        await pilot.press("p", "c", "l", "e", "plus", "left", "0", "m", "o", "v", "s", "f")
        await pilot.pause()
        assert screen.is_current, "no run to control, no dialog to open"


async def test_an_unknown_value_is_a_dash(ws):
    write_run(ws, EVENTS[:3])
    async with opened(ws) as (_, pilot, screen):
        await until(pilot, lambda: f"loss {NONE}" in text(screen, "run"))
        assert "no values yet" in await drawn(pilot, screen)


# A real runner


@pytest.fixture
def toy(ws) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a runner with the toy job in a session of its own, as nohup would."""
    started: list[subprocess.Popen] = []

    def start(*options: str, **config) -> subprocess.Popen:
        process = subprocess.Popen(
            [
                sys.executable,
                str(TOY),
                str(ws.root),
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


async def test_a_run_started_elsewhere_is_attached_and_controlled(ws, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        run = await attached(pilot, screen)
        first = run.step or 0
        await until(pilot, lambda: (run.step or 0) > first + 10)
        await until(pilot, lambda: "training" in text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: run.status == "paused" and not screen.pending_commands)
        paused_at = run.step
        await until(
            pilot, lambda: f"pause requested → paused at step {paused_at:,}" in text(screen, "log")
        )
        await until(pilot, lambda: "paused" in text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: run.status == "training" and (run.step or 0) > paused_at)

        await pilot.press("c")
        await until(pilot, lambda: "checkpoint requested → saved at step" in text(screen, "log"))
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
        await until(pilot, lambda: "stopped" in text(screen, "run"))
        await pilot.press("p")
        assert not screen.pending_commands, "no run is attached"


async def test_a_command_is_shown_until_it_is_answered(ws, toy):
    toy("--quiet", seconds=0.02, faults={1: (1, "deaf")})
    async with opened(ws) as (_, pilot, screen):
        await attached(pilot, screen)
        await pilot.press("p", "c", "c")
        pane = screen.query_one("#run-pane", Pane)
        assert str(pane.border_subtitle) == "pause requested … · checkpoint requested …"
        await pilot.pause(0.5)
        assert "requested" in str(pane.border_subtitle), "the worker ignores commands"


async def test_the_chart_grows_to_what_the_history_holds(ws, toy):
    toy("--quiet", seconds=0.005, steps=600)
    async with opened(ws) as (_, pilot, screen):
        run = await attached(pilot, screen)
        pane = screen.chart_pane
        pane.settings.metrics = ("loss",)
        pane.read_curves()
        await until(pilot, lambda: run.status == "completed", 40)
        await drawn(pilot, screen)
        curve = pane.curves["loss"]
        history = History(ws.history_file)
        stored = history.series(run.run_id, "loss", 0, 601, 10_000)
        history.close()
        values = {c.start: c.last for c in stored if c.count}
        assert len(values) == 600
        for column in curve.columns:
            inside = [v for n, v in values.items() if column.start <= n < column.stop]
            if inside:
                assert (column.low, column.high) == (min(inside), max(inside))
                assert column.last == inside[-1]


async def test_a_killed_runner_is_shown_and_a_resumed_run_is_followed(ws, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened(ws) as (_, pilot, screen):
        run = await attached(pilot, screen)
        await until(pilot, lambda: (run.step or 0) > 20)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        await until(pilot, lambda: run.status == "failed")
        await until(pilot, lambda: "The runner was killed" in text(screen, "run"))
        toy("--quiet", "--resume", seconds=0.02)
        await until(pilot, lambda: screen.run_view and screen.run_view.attempt == 2)
        reached = run.step or 0
        await until(pilot, lambda: screen.run_view and (screen.run_view.step or 0) > reached)


async def test_a_hidden_dashboard_draws_nothing_and_is_redrawn_when_shown(ws, toy):
    toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        run = await attached(pilot, screen)
        await pilot.press("3")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.pause(0.4)
        before = text(screen, "run")
        seen = run.step or 0
        await until(pilot, lambda: (run.step or 0) > seen + 20)
        assert text(screen, "run") == before
        await pilot.press("4")
        await until(pilot, lambda: text(screen, "run") != before)


async def test_two_viewers_follow_one_run(ws, toy):
    toy("--quiet", seconds=0.02)
    async with opened(ws) as (_, pilot, screen):
        run = await attached(pilot, screen)
        from engine.events import Pause
        from engine.run.control import attach

        with attach(ws) as other:
            other.send(Pause())
        await until(pilot, lambda: run.status == "paused")
        await until(pilot, lambda: "paused at step" in text(screen, "log"))
