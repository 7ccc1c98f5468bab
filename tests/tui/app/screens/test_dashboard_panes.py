"""The Dashboard's panes: enlarged, scrolled, searched; the chart's cursor, wheel and mouse."""

from __future__ import annotations

import msgspec
import pytest
from textual.widgets import Input, SelectionList

from engine.events import LayerGroup, LayerStats, LogLine, RunEnded, RunStarted, SampleDrawn
from gladius_tui.app.dialogs.pick import Pick
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.panes.parameters import parameters_pane
from tests.support.dashboard import drawn_chart, opened_dashboard, pane_text
from tests.support.driving import text_of, until
from tests.support.recording import recorded, write_run
from tests.tui.app.widgets.test_panes import run_after

EVENTS = recorded()


async def test_every_pane_is_enlarged_and_comes_back(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        places = {pane.id: pane.region for pane in screen.query(".dashboard-pane") if pane.display}
        assert set(places) >= {"run-pane", "chart-pane", "log-pane", "sample-pane"}
        for name in places:
            screen.set_focus(screen.query_one(f"#{name}"))
            await pilot.press("enter")
            await pilot.pause()
            shown = [pane.id for pane in screen.query(".dashboard-pane") if pane.display]
            if name == "chart-pane":
                assert shown == [name]
            assert shown == [name] and screen.query_one(f"#{name}").size.width > 100
            await pilot.press("escape")
            await pilot.pause()
            now = {p.id: p.region for p in screen.query(".dashboard-pane") if p.display}
            assert now == places
        await pilot.double_click("#sample-pane")
        await until(pilot, lambda: screen.enlarged == "sample")


async def test_a_long_sample_is_read_whole(root):
    words = " ".join(f"word{n}" for n in range(400))
    last = msgspec.structs.replace(EVENTS[-1], seq=0)
    write_run(root, [*EVENTS[:-1], SampleDrawn(step=220, prompt="p", text=words), last])
    async with opened_dashboard(root, (80, 24)) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        while screen.grid.wanted.selected != "sample":
            await pilot.press("tab")
        await pilot.press("enter")
        await until(pilot, lambda: "word0" in pane_text(screen, "sample"))
        assert "word399" not in pane_text(screen, "sample")
        await pilot.press("end")
        await until(pilot, lambda: "word399" in pane_text(screen, "sample"))
        await pilot.press("home")
        await until(pilot, lambda: "word0 " in pane_text(screen, "sample"))
        await pilot.press("pagedown")
        await until(pilot, lambda: "word0 " not in pane_text(screen, "sample"))
        assert " of " in str(screen.query_one("#sample-pane").border_subtitle)


async def test_the_log_scrolls_and_follows_again(root):
    lines = [LogLine(step=1, text=f"line {n}") for n in range(100)]
    write_run(root, [*EVENTS[:3], *lines])
    async with opened_dashboard(root) as (_, pilot, screen):
        await until(pilot, lambda: "line 99" in pane_text(screen, "log"))
        pane = screen.query_one("#log-pane", Pane)
        screen.set_focus(pane)
        await pilot.press("home")
        await until(pilot, lambda: "line 99" not in pane_text(screen, "log"))
        screen.take_events([LogLine(step=2, text="a new line")])
        await pilot.pause(0.4)
        assert "a new line" not in pane_text(screen, "log"), "it stays where it was scrolled to"
        await pilot.press("end")
        await until(pilot, lambda: "a new line" in pane_text(screen, "log"))
        screen.take_events([LogLine(step=2, text="another line")])
        await until(pilot, lambda: "another line" in pane_text(screen, "log"))
        await pilot.press("up")
        await until(pilot, lambda: "another line" not in pane_text(screen, "log"))


@pytest.mark.parametrize("size", [(120, 36), (80, 24)])
async def test_the_log_is_searched(root, size):
    write_run(root, EVENTS)
    async with opened_dashboard(root, size) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        await pilot.press("slash", *"best", "space", *"so", "space", *"far")
        await until(pilot, lambda: "best so far" in pane_text(screen, "log"))
        shown = pane_text(screen, "log").splitlines()
        assert shown and all("best" in line for line in shown)
        await pilot.press("enter", "enter")
        await until(pilot, lambda: screen.enlarged == "log")
        await pilot.press("escape", "escape")
        await until(pilot, lambda: screen.query_one("#filter", Input).value == "")
        await pilot.press("slash", "left_square_bracket", *"bold", "right_square_bracket", "enter")
        await until(pilot, lambda: "no matches" in pane_text(screen, "log"))
        await until(pilot, lambda: "Log · “[bold]” 0" in text_of(screen))  # it is no markup


async def test_a_shorter_text_leaves_nothing_of_the_longer_one(root):
    """After a kill and a resume, rows of the former text stayed: only that one was wrapped."""
    write_run(root, EVENTS[:250])
    async with opened_dashboard(root, (100, 30)) as (_, pilot, screen):
        await until(pilot, lambda: "The runner was killed" in pane_text(screen, "run"))
        started = next(e for e in EVENTS if isinstance(e, RunStarted))
        screen.take_events([msgspec.structs.replace(e, seq=0) for e in (started, *EVENTS[140:160])])
        await until(pilot, lambda: "training" in pane_text(screen, "run"))
        await pilot.pause(0.3)
        left = [line[:33] for line in text_of(screen).splitlines()]
        assert sum("tok/s" in line for line in left) == 1
        assert sum("killed" in line for line in left) == 0


async def test_the_cursor_is_moved_by_keys_and_by_the_mouse(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        newest = await drawn_chart(pilot, screen)
        await pilot.press(*["left_square_bracket"] * 5)
        await until(pilot, lambda: "step 1" in screen.chart_pane.chart.sketch.text)
        at = screen.chart_pane.settings.cursor
        assert at is not None and 170 < at < 220
        await pilot.press("right_square_bracket")
        assert at < (screen.chart_pane.settings.cursor or 0) <= 220
        await pilot.press("escape")
        await until(pilot, lambda: screen.chart_pane.chart.sketch.text == newest)
        assert screen.is_current
        first, columns = screen.chart_pane.chart.sketch.plot
        await pilot.hover("#chart", offset=(first + columns // 2, 3))
        await until(pilot, lambda: screen.chart_pane.settings.cursor is not None)
        assert abs((screen.chart_pane.settings.cursor or 0) - 110) < 8
        await pilot.hover("#log-pane")
        await until(pilot, lambda: screen.chart_pane.settings.cursor is None)


async def test_outliers_are_shown_by_a_key(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        await pilot.press("x")
        await until(
            pilot, lambda: "all values" in str(screen.query_one("#chart-pane").border_subtitle)
        )


async def test_the_wheel_zooms_around_the_step_under_it(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        chart = screen.chart_pane.chart
        chart.post_message(chart.Zoomed(0.5, 60))
        await until(pilot, lambda: screen.chart_pane.settings.view.span is not None)
        lo, hi = screen.chart_pane.settings.view.bounds(220)
        assert lo < 60 < hi and abs((60 - lo) / (hi - lo) - 60 / 221) < 0.05


async def test_a_dialog_of_the_chart_has_its_style_in_a_fresh_app(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (app, pilot, _):
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.pause()
        box = app.screen.query_one(".dialog")
        assert box.size.width < 70 and box.region.x > 10, "a box in the middle"
        assert app.screen.query_one(SelectionList).size.height <= 16


async def test_f8_works_in_a_dialog_and_its_note_has_no_absolute_path(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (app, pilot, screen):
        await drawn_chart(pilot, screen)
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        await pilot.press("f8")
        await until(pilot, lambda: list((root.tmp / "pictures").glob("*.svg")))
        await until(pilot, lambda: app._notifications)
        assert all(str(root.root) not in note.message for note in app._notifications)


def stats(dead: float = 1e-3, exploding: float = 1e-3) -> LayerStats:
    even = (1e-3, 1.2e-3, 9e-4, 1.1e-3)
    return LayerStats(
        step=10,
        interval=5,
        groups=(
            LayerGroup(kind="attention", update=(*even, dead), moved=(*even, 1e-3)),
            LayerGroup(kind="mlp", update=(*even, exploding), moved=(*even, 2e-3)),
            LayerGroup(kind="embeddings", update=(2e-3,), moved=(1e-3,)),
        ),
    )


def test_the_strips_name_the_layers_that_change_least_and_most():
    run = run_after(200)
    run.take([stats()])
    lines = parameters_pane(run, 40, 9).plain.splitlines()
    assert "6,524,160 parameters" in lines[0] and "▇" not in lines[0]
    assert lines[1] == "update / weight of 5 steps"
    assert lines[2].split()[:3:2] == ["attn", "embed"] and len(lines[2].split()[1]) == 5
    assert lines[4].startswith("9e-4 attn 2 … 0.002 embed")
    assert not any(sign in "".join(lines[2:4]) for sign in "·!")
    assert "milestones" not in "".join(lines) and "1B" not in "".join(lines)


def test_a_dead_and_an_exploding_layer_are_seen():
    run = run_after(200)
    run.take([stats(dead=1e-6, exploding=0.5)])
    lines = parameters_pane(run, 60, 12).plain.splitlines()
    assert "·" in lines[2] and "!" in lines[3]
    assert "far above the others: mlp 4" in lines[5] and "hardly changes: attn 4" in lines[5]
    table = parameters_pane(run, 90, 40).plain
    assert all(name in table for name in ("attn 0", "mlp 4", "embed"))


async def test_the_layers_have_a_history_in_the_chart(root):
    end = [e for e in EVENTS if isinstance(e, RunEnded)]
    layers = [msgspec.structs.replace(stats(), step=n) for n in range(5, 220, 5)]
    steps = [e for e in EVENTS if not isinstance(e, RunEnded)]
    events = sorted([*steps, *layers], key=lambda e: e.step)
    write_run(root, [msgspec.structs.replace(e, seq=0) for e in (*events, *end)])
    async with opened_dashboard(root, (160, 50)) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        await pilot.press("enter")  # all panels have room
        await until(pilot, lambda: "Update / weight norm" in screen.chart_pane.chart.sketch.text)
        chart = screen.chart_pane.chart.sketch.text
        assert "Update / weight norm" in chart and "attn" in chart and "embed" in chart
        await pilot.press("escape")
        await until(pilot, lambda: "update / weight" in pane_text(screen, "parameters"))
