"""The Dashboard, driven by its keys: on a recorded run, and on a real runner with a toy job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
from textual.widgets import OptionList, SelectionList

from engine.events import CapabilitiesScored, CapabilityScore, ProbeRead, RunEnded
from engine.run.history import History
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.dialogs.pick import Pick
from gladius_tui.app.screens.dashboard import DashboardScreen
from gladius_tui.app.widgets.dashboard_panes import SIDES, Pane
from gladius_tui.app.widgets.top_bar import KeyBar
from tests.support.paths import REPO
from tests.support.recording import recorded, write_run

TOY = REPO / "tests" / "support" / "toy_job.py"
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


async def until(pilot, condition: Callable[[], object], seconds: float = 20.0):
    """Wait for it; what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        await pilot.pause(0.05)
    return found


@contextlib.asynccontextmanager
async def opened(ws: Workspace, size=(120, 36)):
    """(app, pilot, the Dashboard) once it shows a run, or says that there is none."""
    app = GladiusApp(ws)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, DashboardScreen))
        screen = app.screen
        assert isinstance(screen, DashboardScreen)
        await until(pilot, lambda: not screen._loading and screen.chart is not None)
        yield app, pilot, screen


def text(screen: DashboardScreen, name: str) -> str:
    """What a pane says."""
    return str(screen.query_one(f"#{name}-pane", Pane).render())


async def drawn(pilot, screen: DashboardScreen) -> str:
    """The chart's text once it stands still."""
    chart = screen.chart
    assert chart is not None
    await until(pilot, lambda: not screen._busy and not chart._sketching and chart._text.plain)
    await pilot.pause()
    return chart._text.plain


# A recorded run


async def test_a_finished_run_is_shown_whole(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (_, pilot, screen):
        chart = await drawn(pilot, screen)
        assert "completed" in text(screen, "run") and "step 220 of 220" in text(screen, "run")
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


async def test_metrics_are_chosen_and_other_units_stand_on_the_right(ws):
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
        await until(pilot, lambda: screen.metrics == ("kl", "lr"))
        await pilot.pause(0.2)
        chart = await drawn(pilot, screen)
        assert "e-4" in chart, "the axis of the learning rate"
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("escape")
        assert screen.metrics == ("kl", "lr")


async def test_a_former_run_is_laid_over(ws):
    write_run(ws, EVENTS[:300], "before")
    write_run(ws, EVENTS, "now")
    async with opened(ws) as (app, pilot, screen):
        alone = await drawn(pilot, screen)
        assert screen.board is not None and screen.board.run_id == "now"
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("space", "enter")
        await until(pilot, lambda: screen.others)
        await pilot.pause(0.2)
        await until(pilot, lambda: screen.chart and screen.chart._text.plain != alone)
        assert list(screen.others) == ["before"]
        assert "demo" in str(screen.query_one("#chart-pane").border_title)


async def test_the_lens_opens_over_it(ws):
    write_run(ws, EVENTS)
    async with opened(ws) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        assert "step 220" in str(app.screen.query_one("#lens").border_title)
        await pilot.press("v")
        assert app.screen is screen


async def test_the_lens_is_read_anew_at_every_evaluation(ws):
    readings = [e for e in EVENTS if isinstance(e, ProbeRead)]
    write_run(ws, [e for e in EVENTS if e.step < 100 and not isinstance(e, RunEnded)])
    async with opened(ws) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        title = app.screen.query_one("#lens")
        await until(pilot, lambda: "step 88" in str(title.border_title))
        screen._take([msgspec.structs.replace(e, seq=0) for e in readings[-4:]])
        await until(pilot, lambda: "step 220" in str(title.border_title))
        assert "at step 88" in str(app.screen.query_one("#lens-body").render())  # type: ignore[union-attr]


async def test_what_it_can_do_is_shown_in_the_logs_place(ws):
    score = CapabilityScore(capability="json", right=1, asked=4)
    last = EVENTS[-1]
    able = CapabilitiesScored(who="student", step=220, seq=last.seq + 1, scores=(score,))
    write_run(ws, [*EVENTS, able])
    async with opened(ws, (120, 24)) as (_, pilot, screen):
        await drawn(pilot, screen)
        pane, log = (screen.query_one(f"#{name}-pane", Pane) for name in ("abilities", "log"))
        assert log.display and not pane.display
        await pilot.press("a")
        await until(pilot, lambda: "1/4" in text(screen, "abilities"))
        assert pane.display and not log.display
        await pilot.press("a")
        await pilot.pause()
        assert log.display and not pane.display


async def test_what_it_can_do_stands_in_the_grid_where_there_is_room(ws):
    score = CapabilityScore(capability="json", right=1, asked=4)
    able = CapabilitiesScored(who="student", step=220, scores=(score,))
    write_run(ws, [*EVENTS, able])
    async with opened(ws, (120, 40)) as (_, pilot, screen):
        await until(pilot, lambda: screen.query_one("#able-pane").display)
        await until(pilot, lambda: "json" in text(screen, "able") and "1/4" in text(screen, "able"))
        await pilot.resize_terminal(100, 24)
        await until(pilot, lambda: not screen.query_one("#able-pane").display)
        await until(pilot, lambda: "disk" in text(screen, "hardware"))


async def test_the_footer_offers_what_can_be_done(ws, toy):
    def footer() -> str:
        return str(screen.query_one(KeyBar).render())

    toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        await attached(pilot, screen)
        await until(pilot, lambda: "p Pause  c Checkpoint  s Stop  f Finish" in footer())
        await pilot.press("p")
        await until(pilot, lambda: "p Go on" in footer())
        await pilot.press("s", "s")
        await until(pilot, lambda: "r Resume" in footer() and "Stop" not in footer())
        await pilot.press("r")
        assert app.launched == [("resume",)]


@pytest.mark.parametrize("size", [(80, 24), (70, 17), (99, 40)])
async def test_narrow_it_shows_one_pane_at_a_time(ws, size):
    write_run(ws, EVENTS)
    async with opened(ws, size) as (_, pilot, screen):
        await drawn(pilot, screen)
        assert screen.chart is not None and screen.chart.size.height >= 4
        for name in (*SIDES[1:], SIDES[0]):
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
        assert "completed" in line and "step 220" in line and "\n" not in line


async def test_without_a_run_it_says_what_to_do(ws):
    async with opened(ws) as (_, pilot, screen):
        notice = str(screen.query_one("#notice").render())  # type: ignore[union-attr]
        assert "Press 3" in notice
        await pilot.press("p", "c", "l", "e", "plus", "left", "0", "m", "o", "v", "s", "f")
        await pilot.pause()
        assert screen.is_current, "nothing to ask, nothing to open"


async def test_no_number_where_none_was_told(ws):
    write_run(ws, EVENTS[:3])
    async with opened(ws) as (_, pilot, screen):
        await until(pilot, lambda: "loss –" in text(screen, "run"))
        assert "no value yet" in await drawn(pilot, screen)


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
    """The board, once steps come in live."""
    await until(pilot, lambda: screen._attached and screen.board and screen.board.step)
    assert screen.board is not None
    return screen.board


async def test_a_run_started_elsewhere_is_attached_and_steered(ws, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        board = await attached(pilot, screen)
        first = board.step or 0
        await until(pilot, lambda: (board.step or 0) > first + 10)
        await until(pilot, lambda: "training" in text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: board.status == "paused" and not screen._asked)
        stood = board.step
        await until(pilot, lambda: f"pause asked → paused at step {stood:,}" in text(screen, "log"))
        await until(pilot, lambda: "paused" in text(screen, "run"))

        await pilot.press("p")
        await until(pilot, lambda: board.status == "training" and (board.step or 0) > stood)

        await pilot.press("c")
        await until(pilot, lambda: "checkpoint asked → taken at step" in text(screen, "log"))
        assert board.checkpoint is not None

        await pilot.press("s")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.press("escape")
        assert process.poll() is None, "it only asked"
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen.query(OptionList).first(), OptionList))
        await pilot.press("enter")
        await until(pilot, lambda: board.status == "ended")
        await until(pilot, lambda: process.poll() == 0)
        await until(pilot, lambda: not screen._attached)
        await until(pilot, lambda: "ended" in text(screen, "run"))
        await pilot.press("p")
        assert not screen._asked, "there is nobody to ask"


async def test_what_was_asked_is_shown_until_it_is_done(ws, toy):
    toy("--quiet", seconds=0.02, faults={1: (1, "deaf")})
    async with opened(ws) as (_, pilot, screen):
        await attached(pilot, screen)
        await pilot.press("p", "c", "c")
        pane = screen.query_one("#run-pane", Pane)
        assert str(pane.border_subtitle) == "pause asked … · checkpoint asked …"
        await pilot.pause(0.5)
        assert "asked" in str(pane.border_subtitle), "it hears nothing"


async def test_the_chart_grows_and_is_what_the_history_says(ws, toy):
    toy("--quiet", seconds=0.005, steps=600)
    async with opened(ws) as (_, pilot, screen):
        board = await attached(pilot, screen)
        screen.metrics = ("loss",)
        screen.read_curves()
        await until(pilot, lambda: board.status == "completed", 40)
        await drawn(pilot, screen)
        curve = screen.curves["loss"]
        history = History(ws.history_file)
        stored = history.series(board.run_id, "loss", 0, 601, 10_000)
        history.close()
        values = {c.start: c.last for c in stored if c.count}
        assert len(values) == 600
        for column in curve.columns:
            inside = [v for n, v in values.items() if column.start <= n < column.stop]
            if inside:
                assert (column.low, column.high) == (min(inside), max(inside))
                assert column.last == inside[-1]


async def test_a_killed_runner_is_told_and_a_resumed_run_is_followed(ws, toy):
    process = toy("--quiet", seconds=0.02)
    async with opened(ws) as (_, pilot, screen):
        board = await attached(pilot, screen)
        await until(pilot, lambda: (board.step or 0) > 20)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        await until(pilot, lambda: board.status == "failed")
        await until(pilot, lambda: "gone" in text(screen, "run"))
        toy("--quiet", "--resume", seconds=0.02)
        await until(pilot, lambda: screen.board and screen.board.attempt == 2)
        reached = board.step or 0
        await until(pilot, lambda: screen.board and (screen.board.step or 0) > reached)


async def test_another_screen_draws_nothing_here_and_coming_back_draws_it_all(ws, toy):
    toy("--quiet", seconds=0.02)
    async with opened(ws) as (app, pilot, screen):
        board = await attached(pilot, screen)
        await pilot.press("3")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.pause(0.4)
        before = text(screen, "run")
        seen = board.step or 0
        await until(pilot, lambda: (board.step or 0) > seen + 20)
        assert text(screen, "run") == before
        await pilot.press("4")
        await until(pilot, lambda: text(screen, "run") != before)


async def test_two_watch_one_run(ws, toy):
    toy("--quiet", seconds=0.02)
    async with opened(ws) as (_, pilot, screen):
        board = await attached(pilot, screen)
        from engine.events import Pause
        from engine.run.control import attach

        with attach(ws) as other:
            other.send(Pause())
        await until(pilot, lambda: board.status == "paused")
        await until(pilot, lambda: "paused at step" in text(screen, "log"))
