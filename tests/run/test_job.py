"""Commands between the pieces of work: a pause stands still, an end interrupts."""

from __future__ import annotations

import time

import pytest

from engine.events import Checkpoint, Pause, Resume, RunPaused, RunResumed, Stop
from engine.run.job import JobContext, JobStopped
from tests.support.small_run import KeepingLink


def context_at(step: int, link: KeepingLink) -> tuple[JobContext, list[str]]:
    ctx, saved = JobContext(link), []
    ctx.attach_trainer(save=lambda: saved.append("saved"), step=lambda: step)
    return ctx, saved


def test_a_pause_blocks_at_its_step_until_resumed():
    link = KeepingLink()
    ctx, saved = context_at(7, link)
    former = link.wait

    def wait(timeout: float):
        time.sleep(0.02)
        if link.waits == 3:
            link.ask(Checkpoint())
        if link.waits == 5:
            link.ask(Resume())
        return former(timeout)

    link.wait = wait  # type: ignore[method-assign]
    link.ask(Pause())
    ctx.checkpoint_point("training")
    assert [type(e) for e in link.events] == [RunPaused, RunResumed]
    assert {e.step for e in link.events} == {7}
    assert saved == ["saved"]  # also while it stood still
    assert 0.1 <= ctx.paused_seconds < 5
    ctx.checkpoint_point("training")
    assert len(link.events) == 2


def test_stop_ends_a_pause():
    link = KeepingLink(lambda event: [Stop(signal=15)] if isinstance(event, RunPaused) else [])
    ctx, _ = context_at(3, link)
    link.ask(Pause())
    with pytest.raises(JobStopped):
        ctx.checkpoint_point("training")
    assert ctx.stop == Stop(signal=15) and not ctx.finish_requested
    assert [type(e) for e in link.events] == [RunPaused]
    with pytest.raises(JobStopped):
        ctx.checkpoint_point("evaluating")  # again, wherever it is read next


def test_finishing_does_not_interrupt():
    link = KeepingLink()
    ctx, _ = context_at(3, link)
    link.ask(Stop(finish=True))
    ctx.checkpoint_point("training")
    assert ctx.finish_requested and ctx.stop is None


def test_finishing_resumes_a_paused_run():
    link = KeepingLink(lambda event: [Stop(finish=True)] if isinstance(event, RunPaused) else [])
    ctx, _ = context_at(3, link)
    link.ask(Pause())
    ctx.checkpoint_point("training")
    assert ctx.finish_requested and [type(e) for e in link.events] == [RunPaused, RunResumed]


def test_a_checkpoint_requested_before_training_is_saved_when_a_trainer_is_attached():
    link = KeepingLink()
    ctx, saved = JobContext(link), []
    link.ask(Checkpoint())
    ctx.checkpoint_point("scoring")
    ctx.attach_trainer(save=lambda: saved.append("saved"), step=lambda: 0)
    ctx.checkpoint_point("training")
    ctx.checkpoint_point("training")
    assert saved == ["saved"]


def test_a_pause_that_is_resumed_at_once_has_no_effect():
    link = KeepingLink()
    ctx, _ = context_at(1, link)
    link.ask(Pause())
    link.ask(Resume())
    ctx.checkpoint_point("training")
    assert ctx.paused_seconds == 0
