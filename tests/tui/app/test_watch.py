"""The watcher: subscribers get every event of a running job once and in order."""

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
from gladius_tui.app.event_queue import EventQueue
from gladius_tui.app.job_messages import CommandAnswered, JobAttached, JobDetached, JobEvents
from tests.support.driving import opened, toy_run, until


class Subscriber(Widget):
    """Records the messages it receives."""

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


def seqs(subscriber: Subscriber) -> list[int]:
    return [event.seq for event in subscriber.events]


async def subscribe(app, *jobs, **options) -> Subscriber:
    subscriber = Subscriber()
    await app.screen.mount(subscriber)
    app.watcher.subscribe(subscriber, *jobs, **options)
    return subscriber


async def test_events_follow_the_seq_of_the_attachment_without_a_gap(root):
    async with opened(root, "models") as (app, pilot):
        early = await subscribe(app, "train")
        with toy_run(root):
            await until(pilot, lambda: len(early.events) > 30)
            late = await subscribe(app, "train")
            await until(pilot, lambda: len(late.events) > 30)
            for subscriber in (early, late):
                (attached,) = subscriber.attached
                expected = range(attached.seq + 1, attached.seq + 1 + len(subscriber.events))
                assert seqs(subscriber) == list(expected)
            assert late.attached[0].seq > early.attached[0].seq


async def test_replay_posts_the_history_first_then_live_events(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            await until(pilot, lambda: "train" in app.watcher.jobs)
            subscriber = await subscribe(app, "train", replay=True)
            await until(pilot, lambda: len(subscriber.events) > 20)
            assert subscriber.attached[0].seq == 0
            count = len(subscriber.events)
            await until(pilot, lambda: len(subscriber.events) > count + 20)
            assert seqs(subscriber) == list(range(1, len(subscriber.events) + 1))


class RecordingPump:
    """Records the messages that are posted to it."""

    def __init__(self) -> None:
        self.posted: list = []

    def post_message(self, message) -> None:
        self.posted.append(message)


def test_the_end_of_a_job_is_posted_after_its_history():
    pump = RecordingPump()
    events = EventQueue(pump, "download", "r", replay=True)
    events.put([LogLine(seq=2, text="live")])
    events.close(JobDetached("download", "r"))
    assert pump.posted == []
    events.replay_history([LogLine(seq=1, text="past")])
    events, detached = pump.posted
    assert [event.text for event in events.events] == ["past", "live"]
    assert isinstance(detached, JobDetached)


async def test_many_events_are_posted_in_few_messages(root):
    with toy_run(root, seconds=0.001):
        async with opened(root, "models") as (app, pilot):
            subscriber = await subscribe(app, "train")
            await until(pilot, lambda: len(subscriber.events) > 400)
            assert subscriber.messages < len(subscriber.events) / 5


async def test_it_posts_the_end_of_a_run_and_attaches_to_the_next(root):
    async with opened(root, "models") as (app, pilot):
        subscriber = await subscribe(app, "train")
        with toy_run(root):
            await until(pilot, lambda: subscriber.events)
            app.watcher.send(subscriber, "train", Stop())
            await until(pilot, lambda: subscriber.detached)
            assert type(subscriber.events[-1]).__name__ == "RunEnded"
            assert app.watcher.jobs == {}
        with toy_run(root):
            await until(pilot, lambda: len(subscriber.attached) == 2)
            assert subscriber.attached[1].run_id != subscriber.attached[0].run_id


async def test_commands_are_answered_with_the_event_that_names_the_step(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            subscriber = await subscribe(app, "train")
            for command, kind in ((Pause(), RunPaused), (Checkpoint(), CheckpointSaved)):
                app.watcher.send(subscriber, "train", command)
                await until(pilot, lambda: subscriber.answers)
                answer = subscriber.answers.pop()
                assert isinstance(answer.event, kind) and not answer.error
            await until(pilot, lambda: app.watcher.jobs["train"].status == "paused")
            app.watcher.send(subscriber, "train", Resume())
            await until(pilot, lambda: app.watcher.jobs["train"].status == "running")
            steps = sum(isinstance(event, StepDone) for event in subscriber.events)
            await until(
                pilot, lambda: sum(isinstance(e, StepDone) for e in subscriber.events) > steps + 5
            )


async def test_a_command_without_a_job_fails_with_a_remedy(root):
    async with opened(root, "models") as (app, pilot):
        subscriber = await subscribe(app, "train")
        app.watcher.send(subscriber, "train", Pause())
        await until(pilot, lambda: subscriber.answers)
        assert "gladius_train train" in subscriber.answers[0].error


@pytest.mark.parametrize("mode", ["models", "train"])
async def test_a_job_that_ran_before_the_app_started_is_known_at_once(root, mode):
    with toy_run(root):
        while read_state(root).step < 3:
            time.sleep(0.05)
        async with opened(root, mode) as (app, pilot):
            info = await until(pilot, lambda: app.watcher.jobs.get("train"))
            assert info.preset == "toy" and info.phase_name == "alpha"  # from the history
            await until(pilot, lambda: app.watcher.jobs["train"].step > info.step)
