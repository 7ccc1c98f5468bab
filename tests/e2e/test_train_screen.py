"""A real run from the Train screen: started, watched, left running, stopped, resumed."""

from __future__ import annotations

import pytest
from textual.widgets import Input

from engine.run.control import running_jobs
from engine.run.state import read_state
from gladius_tui.app.dialogs.leave import Leave
from gladius_tui.app.widgets.expert_list import ExpertList
from tests.support.driving import opened, text_of, until
from tests.support.program import SMALL


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


async def test_a_run_from_its_form_to_its_resumption(root):
    fields = {**SMALL, "schedule.max_steps": 100_000}
    async with opened(root.ws, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "parameters" in text_of(screen))
        experts = screen.query_one(ExpertList)
        experts.focus()
        await pilot.press("home", *["down"] * (experts.option_count - 2), "space", "down", "space")
        assert experts.selected == ("tiny",)
        screen.query_one("#data", Input).value = str(root.text)
        overrides = " ".join(f"{name}={value}" for name, value in fields.items())
        screen.query_one("#overrides", Input).value = overrides
        await until(pilot, lambda: "^s to start" in text_of(screen))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: app.current_mode == "dashboard", 60)
        await until(pilot, lambda: step(app) > 10, 90)
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, Leave))
        await pilot.press("enter")
        await until(pilot, lambda: app._exit)
    assert running_jobs(root.ws) == ["train"]
    async with opened(root.ws, "dashboard") as (app, pilot):
        info = await until(pilot, lambda: app.watcher.jobs.get("train"))
        await until(pilot, lambda: step(app) > info.step + 5)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: isinstance(app.screen, Leave))
        await pilot.press("ctrl+c")
        await until(pilot, lambda: app._exit, 60)
        await until(pilot, lambda: running_jobs(root.ws) == [])
    stopped = read_state(root.ws)
    assert stopped.status == "stopped" and stopped.last_checkpoint_step == stopped.step
    async with opened(root.ws, "train") as (app, pilot):
        await until(pilot, lambda: f"step {stopped.step:,}; ^r to resume" in screen_words(app))
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.current_mode == "dashboard", 60)
        await until(pilot, lambda: step(app) > stopped.step + 3, 90)
        assert read_state(root.ws).run_id == stopped.run_id
        await pilot.press("ctrl+c")
        await until(pilot, lambda: isinstance(app.screen, Leave))
        await pilot.press("enter")
        await until(pilot, lambda: app._exit, 60)


def step(app) -> int:
    """The step of the run; fails the test, with what the screen shows, if the run has ended."""
    info = app.watcher.jobs.get("train")
    assert info is not None, text_of(app.screen)
    return info.step


def screen_words(app) -> str:
    """What the screen shows, without line breaks."""
    return " ".join(text_of(app.screen).split())
