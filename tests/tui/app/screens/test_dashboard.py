"""The Dashboard with a recorded run, by its keys."""

from __future__ import annotations

import msgspec
import pytest
from textual.widgets import SelectionList

from engine.events import CapabilitiesScored, CapabilityScore, ProbeRead, RunEnded
from gladius_tui.app.dialogs.pick import Pick
from gladius_tui.app.widgets.pane import Pane
from gladius_tui.app.widgets.pane_grid import TABS
from gladius_tui.format import NONE
from tests.support.dashboard import drawn_chart, opened_dashboard, pane_text
from tests.support.driving import until
from tests.support.recording import recorded, write_run

EVENTS = recorded()


async def test_a_finished_run_is_shown_whole(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        chart = await drawn_chart(pilot, screen)
        await until(pilot, lambda: "step 220 of 220" in pane_text(screen, "run"))
        assert "finished" in pane_text(screen, "run")
        assert "held-out 1.961" in pane_text(screen, "run")
        assert "6,524,160" in pane_text(screen, "parameters")
        assert "SmolLM2 135M" in pane_text(screen, "experts") and "20%" in pane_text(
            screen, "experts"
        )
        assert "RAM" in pane_text(screen, "hardware")
        assert "Route this query" in pane_text(screen, "sample")
        assert "completed at step 220" in pane_text(screen, "log")
        assert "200" in chart and "•" in chart
        for name in ("kl 2.77", "ce 3.57", "held-out 1.96", "lr 2.9e-5"):
            assert name in chart, "a curve is labelled at its end"
        assert str(screen.query_one("#chart-pane").border_title) == "Loss (nats)"
        assert "Held-out (bits/byte)" in chart


async def test_keys_of_the_chart(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (_, pilot, screen):
        whole = await drawn_chart(pilot, screen)

        async def after(*keys: str) -> tuple[str, str]:
            await pilot.press(*keys)
            await pilot.pause(0.1)
            return await drawn_chart(pilot, screen), str(
                screen.query_one("#chart-pane").border_subtitle
            )

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


async def test_metrics_are_chosen_and_each_unit_has_a_panel(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (app, pilot, screen):
        await drawn_chart(pilot, screen)
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
        chart = await drawn_chart(pilot, screen)
        assert "e-4" in chart and "Learning rate" in chart and "Held-out" not in chart
        await pilot.press("m")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("escape")
        assert settings.metrics == ("kl", "lr")


async def test_a_former_run_is_overlaid(root):
    write_run(root, EVENTS[:300], "before")
    write_run(root, EVENTS, "now")
    async with opened_dashboard(root) as (app, pilot, screen):
        alone = await drawn_chart(pilot, screen)
        assert screen.run_view is not None and screen.run_view.run_id == "now"
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, Pick))
        await pilot.press("space", "enter")
        await until(pilot, lambda: screen.chart_pane.overlaid)
        await pilot.pause(0.2)
        chart = screen.chart_pane.chart
        await until(pilot, lambda: chart.sketch.text != alone)
        assert list(screen.chart_pane.overlaid) == ["before"]
        assert "┄" in chart.sketch.text, "the former run has a label"


async def test_the_lens_opens_over_it(root):
    write_run(root, EVENTS)
    async with opened_dashboard(root) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        assert "step 220" in str(app.screen.query_one("#lens").border_title)
        await pilot.press("v")
        assert app.screen is screen


async def test_the_lens_is_updated_at_every_evaluation(root):
    readings = [e for e in EVENTS if isinstance(e, ProbeRead)]
    write_run(root, [e for e in EVENTS if e.step < 100 and not isinstance(e, RunEnded)])
    async with opened_dashboard(root) as (app, pilot, screen):
        await pilot.press("v")
        await until(pilot, lambda: app.screen is not screen)
        title = app.screen.query_one("#lens")
        await until(pilot, lambda: "step 88" in str(title.border_title))
        screen.take_events([msgspec.structs.replace(e, seq=0) for e in readings[-4:]])
        await until(pilot, lambda: "step 220" in str(title.border_title))
        assert "at step 88" in str(app.screen.query_one("#lens-body").render())  # type: ignore[union-attr]


async def test_capabilities_are_shown_instead_of_the_log(root):
    score = CapabilityScore(capability="json", right=1, asked=4)
    last = EVENTS[-1]
    scores = CapabilitiesScored(who="student", step=220, seq=last.seq + 1, scores=(score,))
    write_run(root, [*EVENTS, scores])
    async with opened_dashboard(root, (120, 18)) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        pane, log = (screen.query_one(f"#{name}-pane", Pane) for name in ("capabilities", "log"))
        assert log.display and not pane.display
        await pilot.press("a")
        await until(pilot, lambda: "1/4" in pane_text(screen, "capabilities"))
        assert pane.display and not log.display
        await pilot.press("a")
        await pilot.pause()
        assert log.display and not pane.display


async def test_capabilities_are_in_the_grid_if_there_is_room(root):
    score = CapabilityScore(capability="json", right=1, asked=4)
    scores = CapabilitiesScored(who="student", step=220, scores=(score,))
    write_run(root, [*EVENTS, scores])
    async with opened_dashboard(root, (120, 40)) as (_, pilot, screen):
        await until(pilot, lambda: screen.query_one("#capabilities-pane").display)
        await until(pilot, lambda: "json" in pane_text(screen, "capabilities"))
        assert "1/4" in pane_text(screen, "capabilities")
        await pilot.resize_terminal(100, 20)
        await until(pilot, lambda: not screen.query_one("#capabilities-pane").display)
        await until(pilot, lambda: "disk" in pane_text(screen, "hardware"))


@pytest.mark.parametrize("size", [(80, 24), (70, 17), (99, 40)])
async def test_narrow_it_shows_one_pane_at_a_time(root, size):
    write_run(root, EVENTS)
    async with opened_dashboard(root, size) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        assert screen.chart_pane.chart.size.height >= 4
        tabs = [name for name in TABS if name != "capabilities"]  # none were measured
        for name in (*tabs[1:], tabs[0]):
            await pilot.press("tab")
            await pilot.pause()
            shown = [pane.id for pane in screen.query(Pane) if pane.display]
            assert shown == [f"{name}-pane"]
            await until(pilot, lambda name=name: pane_text(screen, name).strip())
        await pilot.press("shift+tab")
        assert screen.query_one("#log-pane").display
        await pilot.click("#tabs", offset=(2, 0))
        await pilot.pause()
        assert screen.query_one("#run-pane").display


@pytest.mark.parametrize("size", [(59, 40), (120, 15), (40, 5)])
async def test_tiny_it_is_one_line(root, size):
    write_run(root, EVENTS)
    async with opened_dashboard(root, size) as (_, pilot, screen):
        await pilot.pause(0.3)
        assert not screen.query_one("#body").display
        line = str(screen.query_one("#summary").render())  # type: ignore[union-attr]
        assert "finished" in line and "step 220" in line and "\n" not in line


async def test_without_a_run_it_shows_what_to_do(root):
    async with opened_dashboard(root) as (_, pilot, screen):
        notice = str(screen.query_one("#no-run").render())  # type: ignore[union-attr]
        assert "Press 3" in notice
        await pilot.press("p", "c", "l", "e", "plus", "left", "0", "m", "o", "v", "s", "f")
        await pilot.pause()
        assert screen.is_current, "no run to control, no dialog to open"


async def test_an_unknown_value_is_a_dash(root):
    write_run(root, EVENTS[:3])
    async with opened_dashboard(root) as (_, pilot, screen):
        await until(pilot, lambda: "The runner was killed" in pane_text(screen, "run"))
        assert NONE not in pane_text(screen, "run"), "no rows of dashes"
        assert "no values yet" in await drawn_chart(pilot, screen)
