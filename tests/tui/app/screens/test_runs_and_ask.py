"""The list of runs, questions, the guide of an empty root, and what comes next after a run."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest
from textual.widgets import Input, Static

from engine.events import HealthWarning, QuestionAnswered, RunEnded, RunStarted
from engine.run.history import History
from engine.run.runs import find_run, list_runs
from engine.run.view import RunView
from gladius_tui.app.dialogs.ask import Ask
from gladius_tui.app.dialogs.command_output import CommandOutput
from gladius_tui.app.dialogs.runs import Runs
from gladius_tui.app.dialogs.text_input import TextInput
from gladius_tui.app.widgets.advice import Advice, advice_lines
from gladius_tui.app.widgets.notice import Notice
from gladius_tui.app.widgets.table import Table
from gladius_tui.app.widgets.train_form import TrainForm
from tests.run.test_runs import step, write
from tests.support.dashboard import opened_dashboard
from tests.support.driving import opened, static_text, text_of, toy_run, until


async def open_list(app, pilot) -> Runs:
    await pilot.press("h")
    await until(pilot, lambda: isinstance(app.screen, Runs) and app.screen.runs)
    await until(pilot, lambda: app.screen.query_one(Table).row_count)
    return app.screen


@pytest.fixture
def two_runs(root):
    write(root, "train-a", step(1), RunEnded(step=1, status="completed"))
    write(root, "train-b", *(step(n) for n in range(1, 5)), RunEnded(step=4, status="stopped"),
          config={"seed": 3})  # fmt: skip
    return root


async def test_the_list_opens_an_earlier_run_and_the_newest_again(two_runs):
    async with opened_dashboard(two_runs) as (app, pilot, screen):
        dialog = await open_list(app, pilot)
        assert list(dialog.runs) == ["train-b", "train-a"]
        await pilot.press("down", "enter")
        await until(pilot, lambda: screen.run_view.run_id == "train-a" and not screen.load_ticket)
        await until(pilot, lambda: "An earlier run" in text_of(screen))
        assert screen.check_action("resume", ()) is False
        await open_list(app, pilot)
        await pilot.press("enter")
        await until(pilot, lambda: screen.run_view.run_id == "train-b" and not screen.load_ticket)
        assert screen.viewed_run == "" and screen.check_action("resume", ())


async def test_a_run_is_laid_over_the_shown_one_and_taken_away(two_runs):
    async with opened_dashboard(two_runs) as (app, pilot, screen):
        for overlaid in ({"train-a": "train-a"}, {}):
            await open_list(app, pilot)
            await pilot.press("down", "o")
            await until(pilot, lambda: app.screen is screen)
            assert dict(screen.chart_pane.settings.overlaid) == overlaid


async def test_a_run_is_named_and_noted_in_the_list(two_runs):
    async with opened_dashboard(two_runs) as (app, pilot, _):
        dialog = await open_list(app, pilot)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press(*"base", "enter")
        await until(pilot, lambda: find_run(two_runs, "train-b").name == "base")
        await until(pilot, lambda: app.screen is dialog and "base" in text_of(dialog))
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press(*"wide", "enter")
        await until(pilot, lambda: find_run(two_runs, "base").note == "wide")
        await pilot.press("down", "n")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press(*"base", "enter")  # the other one's name: refused, and asked again
        await until(
            pilot,
            lambda: (
                isinstance(app.screen, TextInput)
                and "already called" in static_text(app.screen, "#input-error")
            ),
        )
        assert app.screen.query_one(Input).value == "base"


async def test_configs_are_compared_from_the_list(two_runs):
    async with opened_dashboard(two_runs) as (app, pilot, _):
        await open_list(app, pilot)
        await pilot.press("down", "c")
        await until(pilot, lambda: isinstance(app.screen, CommandOutput))
        await until(pilot, lambda: "seed" in str(app.screen.query_one(Static).visual), 30)


async def test_an_earlier_run_is_shown_while_another_one_trains(root):
    write(root, "train-a", step(1), RunEnded(step=1, status="completed"))
    with toy_run(root):
        async with opened_dashboard(root) as (app, pilot, screen):
            await until(pilot, lambda: screen.attached_run and screen.run_view.step)
            running = screen.attached_run
            await open_list(app, pilot)
            await pilot.press("down", "enter")
            await until(pilot, lambda: screen.run_view.run_id == "train-a")
            await pilot.pause(0.3)
            assert screen.run_view.step == 1 and screen.run_view.status == "completed"
            await pilot.press("p")
            assert not screen.pending_commands  # nothing is sent to a run that is not shown
            await open_list(app, pilot)
            await pilot.press("enter")
            await until(pilot, lambda: screen.run_view.run_id == running)
            before = screen.run_view.step
            await until(pilot, lambda: (screen.run_view.step or 0) > (before or 0))


async def test_a_list_of_500_runs_opens_within_half_a_second(root):
    root.create()
    history = History(root.history_file)
    for n in range(500):
        run_id = f"train-{n:03}"
        history.begin_run(run_id, "train", msgspec.json.encode({"preset": "nano"}))
        started = RunStarted(run_id=run_id, job="train", attempt=1, pid=1)
        history.append(run_id, 1, [started, step(1), RunEnded(step=1, status="stopped")])
    history.close()
    async with opened_dashboard(root) as (app, _, screen):
        seconds = []
        for _ in range(5):  # the shortest: other tests run at the same time
            began = time.perf_counter()
            screen.action_runs()  # a key press of the pilot has waits of its own
            while not (isinstance(app.screen, Runs) and app.screen.query(Table)):
                await asyncio.sleep(0.005)
            while app.screen.query_one(Table).row_count < 500:
                await asyncio.sleep(0.005)
            seconds.append(time.perf_counter() - began)
            await app.screen.dismiss()
        assert min(seconds) < 0.5
        assert len(list_runs(root)) == 500


# Questions


async def test_a_job_that_cannot_answer_says_so(root):
    """The toy has no student: the question goes through the runner and comes back declined."""
    with toy_run(root):
        async with opened_dashboard(root) as (app, pilot, screen):
            await until(pilot, lambda: screen.attached_run)
            await pilot.press("i")
            await until(pilot, lambda: isinstance(app.screen, Ask))
            await pilot.press(*"Why", "enter")
            await until(pilot, lambda: "> Why" in text_of(app.screen))
            await until(pilot, lambda: "there is no student to ask yet" in text_of(app.screen))
            assert isinstance(app.screen.answers[0], QuestionAnswered)


async def test_without_a_model_the_answer_is_the_remedy(two_runs):
    async with opened_dashboard(two_runs) as (app, pilot, _):
        await pilot.press("i")
        await until(pilot, lambda: isinstance(app.screen, Ask))
        await pilot.press(*"Why", "enter")
        await until(pilot, lambda: "no trained model" in text_of(app.screen), 30)


# Guide and advice


async def test_an_empty_root_shows_the_first_steps(root, monkeypatch):
    launched: list[list[str]] = []

    def launch(argv) -> bool:
        launched.append(list(argv))
        return True

    async with opened(root, "models") as (app, pilot):
        shown = "f fetch SmolLM2 135M (88.6 MiB) · n start the preset nano · 4 watch it"
        await until(pilot, lambda: shown in text_of(app.screen))
        monkeypatch.setattr(app, "launch", launch)
        await pilot.press("n")  # the expert is fetched first
        assert launched == [["download", "smollm2"]]
        assert "the run starts when it is here" in app.screen.query_one(Notice).text
        from gladius_tui.launch import Ended

        app.screen.launch_ended(Ended(("download", "smollm2"), 0, ""))
        assert launched[1] == ["train", "--preset", "nano"]
        await until(pilot, lambda: app.current_mode == "train" and app.screen.query(TrainForm))


async def test_a_root_with_a_run_has_no_guide(two_runs):
    two_runs.state_file.write_text('{"status": "completed"}')
    async with opened(two_runs, "models") as (app, pilot):
        await until(pilot, lambda: app.state is not None and app.screen.inventory is not None)
        await pilot.pause()
        assert "First steps" not in text_of(app.screen)
        assert app.screen.check_action("guide_start", ()) is False


async def test_the_dashboard_says_what_comes_next(two_runs):
    async with opened_dashboard(two_runs) as (_, pilot, screen):
        await until(pilot, lambda: "Next: r resume" in text_of(screen))
        assert screen.query_one(Advice).has_class("-on")


def test_warnings_come_before_what_comes_next():
    view = RunView()
    view.take([RunStarted(run_id="r", job="train", attempt=1, pid=1)])
    assert advice_lines(view, former=False, width=80) == []
    view.take([HealthWarning(kind="epochs", text="the text has been used " + "x" * 100)])
    view.take([RunEnded(status="completed")])
    warning, following = [line.plain for line in advice_lines(view, former=False, width=80)]
    assert warning.startswith("! the text has been used") and len(warning) == 80
    assert "6 validate" in following
