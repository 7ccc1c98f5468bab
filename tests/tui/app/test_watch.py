"""The watcher: screens hear every event of a live job once, in order, whenever they come."""

from __future__ import annotations

import time

import pytest
from textual.widget import Widget

from engine.events import (
    Checkpoint,
    CheckpointSaved,
    LogLine,
    Pause,
    Resume,
    RunPaused,
    StepDone,
    Stop,
)
from engine.run.state import read_state
from gladius_tui.app.watch import CommandAnswered, JobAttached, JobDetached, JobEvents, _Line
from tests.support.driving import opened, toy_run, until


class Listener(Widget):
    """Notes what it is sent; `slow` sleeps over every message."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: list[JobAttached] = []
        self.detached: list[JobDetached] = []
        self.answers: list[CommandAnswered] = []
        self.events: list = []
        self.messages = 0

    def on_job_attached(self, message: JobAttached) -> None:
        self.attached.append(message)

    def on_job_events(self, message: JobEvents) -> None:
        self.messages += 1
        self.events += message.events

    def on_job_detached(self, message: JobDetached) -> None:
        self.detached.append(message)

    def on_command_answered(self, message: CommandAnswered) -> None:
        self.answers.append(message)


def seqs(listener: Listener) -> list[int]:
    return [event.seq for event in listener.events]


async def listen(app, pilot, *jobs, **options) -> Listener:
    listener = Listener()
    await app.screen.mount(listener)
    app.watcher.subscribe(listener, *jobs, **options)
    return listener


async def test_events_follow_the_seq_of_the_attachment_without_a_gap(root):
    async with opened(root, "models") as (app, pilot):
        early = await listen(app, pilot, "train")
        with toy_run(root):
            await until(pilot, lambda: len(early.events) > 30)
            late = await listen(app, pilot, "train")
            await until(pilot, lambda: len(late.events) > 30)
            for listener in (early, late):
                (attached,) = listener.attached
                expected = range(attached.seq + 1, attached.seq + 1 + len(listener.events))
                assert seqs(listener) == list(expected)
            assert late.attached[0].seq > early.attached[0].seq


async def test_replay_gives_the_history_first_and_then_goes_on(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            await until(pilot, lambda: "train" in app.watcher.jobs)
            listener = await listen(app, pilot, "train", replay=True)
            await until(pilot, lambda: len(listener.events) > 20)
            assert listener.attached[0].seq == 0
            count = len(listener.events)
            await until(pilot, lambda: len(listener.events) > count + 20)
            assert seqs(listener) == list(range(1, len(listener.events) + 1))


class Box:
    """Keeps what it is posted."""

    def __init__(self) -> None:
        self.posted: list = []

    def post_message(self, message) -> None:
        self.posted.append(message)


def test_a_job_that_ends_before_its_history_is_read_is_told_as_ended_last():
    box = Box()
    line = _Line(box, "download", "r")
    line.held_back = True
    line.put([LogLine(seq=2, text="live")])
    line.end(JobDetached("download", "r"))
    assert box.posted == []
    line.release([LogLine(seq=1, text="past")])
    events, detached = box.posted
    assert [event.text for event in events.events] == ["past", "live"]
    assert isinstance(detached, JobDetached)


async def test_a_busy_stream_comes_in_few_messages(root):
    with toy_run(root, seconds=0.001):
        async with opened(root, "models") as (app, pilot):
            listener = await listen(app, pilot, "train")
            await until(pilot, lambda: len(listener.events) > 400)
            assert listener.messages < len(listener.events) / 5


async def test_it_hears_of_the_end_and_attaches_to_the_next_run(root):
    async with opened(root, "models") as (app, pilot):
        listener = await listen(app, pilot, "train")
        with toy_run(root):
            await until(pilot, lambda: listener.events)
            app.watcher.ask(listener, "train", Stop())
            await until(pilot, lambda: listener.detached)
            assert type(listener.events[-1]).__name__ == "RunEnded"
            assert app.watcher.jobs == {}
        with toy_run(root):
            await until(pilot, lambda: len(listener.attached) == 2)
            assert listener.attached[1].run_id != listener.attached[0].run_id


async def test_commands_are_answered_with_the_event_that_names_the_step(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            listener = await listen(app, pilot, "train")
            for command, kind in ((Pause(), RunPaused), (Checkpoint(), CheckpointSaved)):
                app.watcher.ask(listener, "train", command)
                await until(pilot, lambda: listener.answers)
                answer = listener.answers.pop()
                assert isinstance(answer.event, kind) and not answer.error
            await until(pilot, lambda: app.watcher.jobs["train"].status == "paused")
            app.watcher.ask(listener, "train", Resume())
            await until(pilot, lambda: app.watcher.jobs["train"].status == "running")
            steps = sum(isinstance(event, StepDone) for event in listener.events)
            await until(
                pilot, lambda: sum(isinstance(e, StepDone) for e in listener.events) > steps + 5
            )


async def test_a_command_to_no_job_says_what_to_do(root):
    async with opened(root, "models") as (app, pilot):
        listener = await listen(app, pilot, "train")
        app.watcher.ask(listener, "train", Pause())
        await until(pilot, lambda: listener.answers)
        assert "gladius_train train" in listener.answers[0].error


@pytest.mark.parametrize("mode", ["models", "train"])
async def test_a_job_that_ran_before_the_app_is_known_at_once(root, mode):
    with toy_run(root):
        while read_state(root).step < 3:
            time.sleep(0.05)
        async with opened(root, mode) as (app, pilot):
            info = await until(pilot, lambda: app.watcher.jobs.get("train"))
            assert info.preset == "toy" and info.phase_name == "alpha"  # told before it attached
            await until(pilot, lambda: app.watcher.jobs["train"].step > info.step)
