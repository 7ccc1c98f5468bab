"""The clock of a run: unpaused time, all attempts together, and what follows from it."""

from __future__ import annotations

import pytest

from engine.distill.train import pace as pace_module
from engine.distill.train.pace import Pace
from engine.distill.train.phases import Schedule, plan_phases
from engine.experts.registry import load_experts
from engine.run.job import JobContext
from tests.support.small_run import KeepingLink, make_config, make_root


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that the test sets: clock(seconds) lets them pass."""
    now = [1000.0]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    return make_root(tmp_path_factory.mktemp("root"))


def schedule_of(ws, **fields) -> Schedule:
    config = make_config(ws, **fields)
    return Schedule(config, plan_phases(config, [load_experts(ws)["tiny"]]))


def test_training_time_counts_all_attempts_without_pauses(clock):
    ctx = JobContext(KeepingLink())
    ctx.paused_seconds = 5.0  # before this, counted by the caller of Pace in previous_seconds
    pace = Pace(ctx, 100.0)
    clock(10)
    ctx.paused_seconds += 4.0
    assert pace.training_seconds == 106.0


def test_seconds_per_step_is_a_recent_mean(clock):
    pace = Pace(JobContext(KeepingLink()), 0.0)
    assert pace.seconds_per_step == 0.0
    for _ in range(60):
        clock(1.0)
        pace.step_done()
    assert pace.seconds_per_step == 1.0
    for _ in range(50):
        clock(3.0)
        pace.step_done()
    assert pace.seconds_per_step == 3.0
    assert pace.clock(2.0) == {
        "elapsed": 210.0,
        "hours": 2.0,
        "seconds_per_step": 3.0,
        "save_seconds": 10.0,
    }


def test_planned_steps_give_the_ends_of_phase_and_run(clock, ws):
    pace = Pace(JobContext(KeepingLink()), 0.0)
    clock(2.0)
    pace.step_done()
    schedule = schedule_of(ws, schedule__max_steps=20)  # 12 of the expert's, 8 of all
    forecast = pace.forecast(schedule, 6)
    assert (forecast.phase_progress, forecast.run_progress) == (0.5, 0.3)
    assert (forecast.phase_eta, forecast.run_eta) == (12.0, 28.0)
    assert pace.forecast(schedule, 20).run_eta == 0.0


def test_hours_give_the_end_of_the_run_by_the_clock(clock, ws):
    pace = Pace(JobContext(KeepingLink()), 0.0)
    schedule = schedule_of(ws, schedule__max_steps="none", schedule__hours=1.0)
    for _ in range(9):
        clock(100.0)
        pace.step_done()
    forecast = pace.forecast(schedule, 9)
    assert forecast.run_eta == 2700.0
    assert forecast.run_progress == pytest.approx(900 / 3590)
    assert forecast.phase_progress is not None and 0 < forecast.phase_progress < 1
    assert forecast.phase_eta is None
    clock(10_000.0)
    assert pace.forecast(schedule, 9).run_eta == 0.0  # never negative


def test_without_steps_or_hours_there_is_no_end(clock, ws):
    pace = Pace(JobContext(KeepingLink()), 0.0)
    schedule = schedule_of(ws, schedule__max_steps="none")
    clock(1.0)
    pace.step_done()
    assert pace.forecast(schedule, 1).run_eta is None
