"""Phases, learning rate and mix of every step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.config import ExpertsConfig, RunConfig
from engine.distill.train.phases import Decision, plan_phases
from tests.support.schedules import FOUR, LR, Expert, lengths, make_schedule

# The plan


def test_phases_are_create_the_experts_in_order_unified_and_save() -> None:
    phases = plan_phases(RunConfig(), FOUR)
    assert [p.kind for p in phases] == ["create", *["expert"] * 4, "unified", "save"]
    assert [p.expert for p in phases[1:5]] == ["qwen", "llama", "phi", "tinyllama"]
    assert [p.index for p in phases] == list(range(7))
    assert [p.share for p in phases[1:6]] == pytest.approx([0.18, 0.156, 0.144, 0.12, 0.4])


def test_weights_of_the_config_replace_those_of_the_experts() -> None:
    config = RunConfig(experts=ExpertsConfig(weights={"qwen": 3.0}))
    phases = plan_phases(config, FOUR[:2])
    assert phases[1].share == pytest.approx(0.6 * 3.0 / 4.3)
    assert phases[2].share == pytest.approx(0.6 * 1.3 / 4.3)


@settings(deadline=None)
@example(3, [0.1, 10.0])
@example(6, [0.1, 0.1, 10.0, 0.1, 0.1])
@given(st.integers(1, 3000), st.lists(st.floats(0.1, 10), min_size=1, max_size=5))
def test_max_steps_are_divided_exactly_among_the_phases(
    max_steps: int, weights: list[float]
) -> None:
    experts = tuple(Expert(f"e{i}", f"E{i}", w) for i, w in enumerate(weights))
    schedule = make_schedule(experts=experts, max_steps=max_steps)
    steps = lengths(schedule)
    assert sum(steps) == max_steps == schedule.end_step
    if max_steps >= len(steps):
        assert min(steps) >= 1
    for phase, taken in zip(schedule.phases[1:-1], steps, strict=True):
        if max_steps >= 20 * len(steps):
            assert taken == pytest.approx(phase.share * max_steps, abs=2.5)
    phases = [schedule.phase_at(step).index for step in range(1, max_steps + 1)]
    assert phases == sorted(phases)
    assert schedule.phase_at(max_steps + 1).kind == "save"


def test_a_run_of_one_step_has_one_step() -> None:
    schedule = make_schedule(experts=FOUR[:1], max_steps=1, warmup_steps=100)
    assert schedule.phase_at(0).kind == "create"
    assert schedule.phase_at(1).kind == "expert"
    assert schedule.phase_at(2).kind == "save"
    assert schedule.lr_at(1) == LR


@pytest.mark.parametrize(("share", "steps"), [(0.0, [0, 0, 100]), (1.0, [50, 50, 0])])
def test_a_phase_without_a_share_has_no_steps(share: float, steps: list[int]) -> None:
    pair = (Expert("a", "A", 1), Expert("b", "B", 1))
    schedule = make_schedule(experts=pair, max_steps=100, expert_share=share)
    assert lengths(schedule) == steps
    assert schedule.phase_at(100).kind == ("unified" if share == 0 else "expert")


def test_without_a_budget_experts_train_for_their_tokens_and_the_unified_phase_has_no_end() -> None:
    schedule = make_schedule(experts=FOUR[:2], expert_tokens=14_000)
    assert [schedule.bounds(p) for p in schedule.phases[1:]] == [
        (1, 15),
        (16, 28),
        (29, None),
        (None, None),
    ]
    assert schedule.end_step is None and schedule.decay is None
    assert schedule.phase_at(10**9).kind == "unified"


def test_unified_tokens_limit_the_unified_phase_and_plan_the_decay() -> None:
    schedule = make_schedule(experts=FOUR[:1], expert_tokens=60_000, unified_tokens=39_500)
    assert schedule.end_step == 100
    assert schedule.decay == (86, 100)
    assert make_schedule(max_steps=100, unified_tokens=10_000).end_step == 70


def test_with_hours_alone_no_phase_has_a_planned_end() -> None:
    schedule = make_schedule(hours=1.0)
    assert schedule.bounds(schedule.phases[1]) == (1, None)
    assert schedule.bounds(schedule.phases[2]) == (None, None)
    assert schedule.phase_at(10**6).index == 1


# The learning rate


def test_the_learning_rate_warms_up_stays_and_decays() -> None:
    schedule = make_schedule(max_steps=1000, warmup_steps=50)
    rates = [schedule.lr_at(step) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(LR / 50) and rates[49] == LR
    assert set(rates[49:850]) == {LR}
    assert schedule.decay == (851, 1000)
    falling = rates[849:]
    assert all(a > b for a, b in pairwise(falling))
    assert rates[-1] == pytest.approx(LR / 151)


def test_decay_ends_at_the_configured_ratio() -> None:
    schedule = make_schedule(max_steps=1000, min_lr_ratio=0.1)
    assert schedule.lr_at(1001) == pytest.approx(0.1 * LR)
    assert schedule.lr_at(925) == pytest.approx(LR * (1 - 0.9 * 75 / 151))


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 200), st.floats(0, 1))
def test_no_step_of_a_planned_run_has_learning_rate_zero(
    max_steps: int, warmup: int, decay_share: float
) -> None:
    schedule = make_schedule(max_steps=max_steps, warmup_steps=warmup, decay_share=decay_share)
    assert all(0 < schedule.lr_at(step) <= LR for step in range(1, max_steps + 1))


def test_warmup_is_at_most_a_tenth_of_a_planned_run() -> None:
    assert make_schedule(max_steps=60, warmup_steps=100).lr_at(6) == LR
    assert make_schedule(max_steps=60, warmup_steps=100).lr_at(5) < LR
    assert make_schedule(hours=1.0, warmup_steps=100).lr_at(50) == pytest.approx(LR / 2)


def test_the_decay_is_within_the_unified_phase() -> None:
    schedule = make_schedule(max_steps=100, expert_share=0.95, decay_share=0.5)
    assert schedule.decay == (96, 100)
    assert make_schedule(max_steps=100, decay_share=0.0).decay is None
    assert make_schedule(max_steps=100, expert_share=1.0).decay is None


def test_a_rollback_lowers_the_rate_after_its_step_and_a_second_one_again() -> None:
    once = Decision(40, "rollback", 0.5)
    schedule = make_schedule(max_steps=100, decisions=(once,))
    assert schedule.lr_at(40) == LR and schedule.lr_at(41) == LR / 2
    assert schedule.with_decision(once).lr_at(41) == LR / 4
    earlier = schedule.with_decision(Decision(20, "rollback", 0.5))
    assert [earlier.lr_at(s) / LR for s in (20, 21, 40, 41)] == [1, 0.5, 0.5, 0.25]


# The mix


def test_a_later_expert_phase_replays_the_earlier_ones_by_weight() -> None:
    schedule = make_schedule(max_steps=1000)
    assert schedule.mix_at(1) == {"qwen": 1.0}
    third = schedule.mix_at(400)
    assert third == pytest.approx({"qwen": 0.2 * 1.5 / 2.8, "llama": 0.2 * 1.3 / 2.8, "phi": 0.8})
    assert schedule.mix_at(1000) == pytest.approx(
        {"qwen": 0.3, "llama": 0.26, "phi": 0.24, "tinyllama": 0.2}
    )


@settings(deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_every_mix_sums_to_one(step: int, replay: float) -> None:
    mix = make_schedule(max_steps=500, replay=replay).mix_at(step)
    assert sum(mix.values()) == pytest.approx(1.0)
    assert min(mix.values()) >= 0
