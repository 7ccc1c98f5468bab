"""The plan of a run: phases, learning rate, mix, and what ends them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.config import ExpertsConfig, OptimizerConfig, RunConfig, ScheduleConfig
from engine.distill.train.decisions import (
    clock_decisions,
    clock_progress,
    converged,
    due_decisions,
    finish_decision,
    mix_decision,
    on_policy_decision,
)
from engine.distill.train.phases import Decision, Schedule, plan_phases

TOKENS = 1000  # student tokens of a step
LR = 3e-4


class Expert(msgspec.Struct, frozen=True):
    name: str
    title: str
    weight: float


FOUR = (
    Expert("qwen", "Qwen", 1.5),
    Expert("llama", "Llama", 1.3),
    Expert("phi", "Phi", 1.2),
    Expert("tinyllama", "TinyLlama", 1.0),
)


def make_schedule(
    *, experts: tuple[Expert, ...] = FOUR, decisions: tuple[Decision, ...] = (), **fields: Any
) -> Schedule:
    fields = {"warmup_steps": 0, **fields}
    optimizer = OptimizerConfig(lr=LR, global_batch_size=1, max_seq_len=TOKENS)
    config = RunConfig(optimizer=optimizer, schedule=ScheduleConfig(**fields))
    return Schedule(config, plan_phases(config, experts), decisions)


def run_by_plan(schedule: Schedule, steps: int) -> Schedule:
    """The schedule after `steps` steps that journalled what was due after each."""
    for step in range(1, steps + 1):
        for decision in due_decisions(schedule, step):
            schedule = schedule.with_decision(decision)
    return schedule


def lengths(schedule: Schedule) -> list[int]:
    """Steps of the expert phases and the unified one."""
    found = []
    for phase in schedule.phases[1:-1]:
        first, last = schedule.bounds(phase)
        assert first is not None and last is not None
        found.append(last - first + 1)
    return found


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
def test_max_steps_are_shared_out_exactly(max_steps: int, weights: list[float]) -> None:
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


def test_without_a_budget_experts_have_their_tokens_and_the_unified_phase_is_open() -> None:
    schedule = make_schedule(experts=FOUR[:2], expert_tokens=14_000)
    assert [schedule.bounds(p) for p in schedule.phases[1:]] == [
        (1, 15),
        (16, 28),
        (29, None),
        (None, None),
    ]
    assert schedule.end_step is None and schedule.decay is None
    assert schedule.phase_at(10**9).kind == "unified"


def test_unified_tokens_bound_the_unified_phase_and_let_the_decay_be_planned() -> None:
    schedule = make_schedule(experts=FOUR[:1], expert_tokens=60_000, unified_tokens=39_500)
    assert schedule.end_step == 100
    assert schedule.decay == (86, 100)
    assert make_schedule(max_steps=100, unified_tokens=10_000).end_step == 70


def test_with_hours_alone_every_end_is_open() -> None:
    schedule = make_schedule(hours=1.0)
    assert schedule.bounds(schedule.phases[1]) == (1, None)
    assert schedule.bounds(schedule.phases[2]) == (None, None)
    assert schedule.phase_at(10**6).index == 1


# The learning rate


def test_lr_warms_up_holds_and_decays() -> None:
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
def test_no_step_of_a_planned_run_is_taken_at_rate_zero(
    max_steps: int, warmup: int, decay_share: float
) -> None:
    schedule = make_schedule(max_steps=max_steps, warmup_steps=warmup, decay_share=decay_share)
    assert all(0 < schedule.lr_at(step) <= LR for step in range(1, max_steps + 1))


def test_warmup_is_at_most_a_tenth_of_a_planned_run() -> None:
    assert make_schedule(max_steps=60, warmup_steps=100).lr_at(6) == LR
    assert make_schedule(max_steps=60, warmup_steps=100).lr_at(5) < LR
    assert make_schedule(hours=1.0, warmup_steps=100).lr_at(50) == pytest.approx(LR / 2)


def test_decay_lies_inside_the_unified_phase() -> None:
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


# Decisions


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4))
def test_journalling_what_is_due_changes_nothing(
    max_steps: int, expert_share: float, decay_share: float, experts: int
) -> None:
    planned = make_schedule(
        experts=FOUR[:experts],
        max_steps=max_steps,
        expert_share=expert_share,
        decay_share=decay_share,
        warmup_steps=7,
    )
    done = run_by_plan(planned, max_steps)
    for step in range(max_steps + 2):
        assert done.phase_at(step) == planned.phase_at(step)
        assert done.lr_at(step) == planned.lr_at(step)
        assert done.mix_at(step) == planned.mix_at(step)
    assert due_decisions(done, max_steps) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(10, 200), st.integers(0, 200), st.integers(10, 400))
def test_a_resume_with_another_budget_does_not_move_the_past(
    max_steps: int, taken: int, other: int
) -> None:
    taken = min(taken, max_steps)
    before = run_by_plan(make_schedule(max_steps=max_steps), taken)
    after = make_schedule(max_steps=other, decisions=before.decisions)
    for phase in before.phases[1:]:
        _, last = before.bounds(phase)
        if last is not None and last <= taken and phase.kind == "expert":
            assert after.bounds(phase) == before.bounds(phase)
    if before.decay_begun is None and other > taken:
        assert after.end_step == other
    else:
        # A decay that has begun is finished; going on from before it is the trainer's to do.
        assert before.decay_begun is None or after.decay == before.decay


def test_a_run_that_is_over_early_by_a_smaller_budget_goes_to_the_save_phase() -> None:
    before = run_by_plan(make_schedule(max_steps=100), 50)
    after = make_schedule(max_steps=40, decisions=before.decisions)
    assert after.phase_at(51).kind == "save"


def test_finish_ends_the_expert_phases_and_decays_over_a_share_of_the_steps_so_far() -> None:
    schedule = make_schedule(expert_tokens=1_000_000)
    for decision in finish_decision(schedule, 200):
        schedule = schedule.with_decision(decision)
    assert schedule.decay == (201, 230) and schedule.end_step == 230
    assert schedule.phase_at(200).index == 1
    assert schedule.phase_at(201).kind == schedule.phase_at(230).kind == "unified"
    assert schedule.phase_at(231).kind == "save"
    assert schedule.lr_at(200) == LR and schedule.lr_at(201) < LR
    assert finish_decision(schedule, 201) == []
    assert due_decisions(schedule, 230) == []


def test_finish_never_reaches_past_the_planned_end() -> None:
    schedule = make_schedule(max_steps=100)
    assert finish_decision(schedule, 85) == []  # the decay begins there anyway
    assert finish_decision(schedule, 100) == []
    short = make_schedule(max_steps=100, decay_share=0.02)
    assert finish_decision(short, 97)[-1].value == 2


def test_finish_before_the_first_step_takes_one_step_at_a_rate_above_zero() -> None:
    schedule = make_schedule(expert_tokens=1_000_000, warmup_steps=100)
    for decision in finish_decision(schedule, 0):
        schedule = schedule.with_decision(decision)
    assert schedule.end_step == 1
    assert schedule.lr_at(1) > 0


def test_finish_in_the_warmup_does_not_raise_the_rate_any_more() -> None:
    schedule = make_schedule(expert_tokens=1_000_000, warmup_steps=100)
    for decision in finish_decision(schedule, 40):
        schedule = schedule.with_decision(decision)
    rates = [schedule.lr_at(step) / LR for step in range(40, 47)]
    assert rates == pytest.approx([0.4 * (7 - n) / 7 for n in range(7)])


def test_finish_without_a_decay_ends_the_run_at_once() -> None:
    schedule = make_schedule(expert_tokens=1_000_000, decay_share=0.0)
    for decision in finish_decision(schedule, 20):
        schedule = schedule.with_decision(decision)
    assert schedule.end_step == 20 and schedule.decay is None
    assert schedule.phase_at(21).kind == "save"


def test_a_nearer_end_of_the_decay_goes_on_from_the_rate_it_had() -> None:
    schedule = make_schedule(
        max_steps=100, decisions=(Decision(50, "decay_start", 40), Decision(60, "decay_end", 70))
    )
    assert schedule.end_step == 70
    rates = [schedule.lr_at(step) for step in range(50, 72)]
    assert rates[10] == pytest.approx(LR * (1 - 10 / 41))
    assert rates[11] == pytest.approx(rates[10] * 10 / 11)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in pairwise(rates))


def test_the_setting_decided_last_holds_after_its_step() -> None:
    schedule = make_schedule(
        max_steps=10,
        decisions=(
            Decision(3, "micro_batch", 4),
            Decision(6, "micro_batch", 2),
            Decision(6, "activation_checkpointing", True),
        ),
    )
    assert [schedule.setting_at(s, "micro_batch") for s in (3, 4, 6, 7)] == [None, 4, 4, 2]
    assert schedule.setting_at(7, "activation_checkpointing") is True
    assert schedule.setting_at(7, "device") is None


def test_progress_counts_steps_of_phase_and_run() -> None:
    schedule = make_schedule(experts=FOUR[:1], max_steps=100)
    assert schedule.progress(0) == (1.0, 0.0)
    assert schedule.progress(30) == (0.5, 0.3)
    assert schedule.progress(100) == (1.0, 1.0)
    assert schedule.progress(101) == (0.0, 1.0)
    assert make_schedule(hours=1.0).progress(5) == (None, None)


# Convergence


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        ([2.0, 1.9, 1.8], False),
        ([2.0, 2.0, 2.1, 2.0], True),
        ([2.0, 1.999, 1.9985, 1.9995], True),
        ([2.0, 1.999, 1.998, 1.997], False),  # small falls that add up are progress
        ([2.0, float("nan"), float("nan"), float("nan")], True),
        ([float("nan"), 2.0, 2.0, 2.0], False),
        ([2.0, 2.0, 2.0, 1.5], False),
    ],
)
def test_convergence_is_patience_evaluations_without_a_fall(
    values: list[float], expected: bool
) -> None:
    history = list(enumerate(values))
    assert converged(history, patience=3, delta=0.0019) is expected


# The clock


class Clocked:
    """A run under --hours: steps of a given length, asked after each what the clock decides."""

    def __init__(self, *, preparation: float = 0.0, hours: float = 1.0, save: float = 60.0) -> None:
        self.schedule = make_schedule(hours=hours)
        self.elapsed, self.step = preparation, 0
        self.hours, self.save = hours, save
        self.recent: list[float] = []
        self.progress: list[tuple[float | None, float | None]] = []

    def run(self, seconds_at: Any) -> Clocked:
        while True:
            pace = sum(self.recent[-20:]) / len(self.recent[-20:]) if self.recent else 0.0
            clock = {
                "elapsed": self.elapsed,
                "hours": self.hours,
                "seconds_per_step": pace,
                "save_seconds": self.save,
            }
            for decision in clock_decisions(self.schedule, self.step, **clock):
                self.schedule = self.schedule.with_decision(decision)
            self.progress.append(clock_progress(self.schedule, self.step, **clock))
            for decision in due_decisions(self.schedule, self.step):
                self.schedule = self.schedule.with_decision(decision)
            if self.schedule.phase_at(self.step + 1).kind == "save":
                return self
            seconds = seconds_at(self.step + 1)
            self.recent.append(seconds)
            self.elapsed += seconds
            self.step += 1
            assert self.step < 100_000, "the clock never ended the run"

    @property
    def limit(self) -> float:
        return self.hours * 3600 - self.save


def test_hours_are_shared_out_with_time_for_decay_and_save() -> None:
    run = Clocked().run(lambda step: 2.0)
    assert run.limit - 4 <= run.elapsed <= run.limit
    shares = [n / run.step for n in lengths(run.schedule)]
    assert shares == pytest.approx([0.18, 0.156, 0.144, 0.12, 0.4], abs=0.003)
    assert run.schedule.decay is not None
    first, last = run.schedule.decay
    assert (last - first + 1) / run.step == pytest.approx(0.15, abs=0.003)


def test_time_spent_before_the_first_step_is_borne_by_all_phases() -> None:
    run = Clocked(preparation=1800).run(lambda step: 2.0)
    assert run.elapsed <= run.limit
    shares = [n / run.step for n in lengths(run.schedule)]
    assert shares == pytest.approx([0.18, 0.156, 0.144, 0.12, 0.4], abs=0.005)


def test_a_decay_that_becomes_slow_is_cut_short_to_end_in_time() -> None:
    run = Clocked().run(lambda step: 2.0 if step < 1600 else 8.0)
    assert run.schedule.decay is not None and run.schedule.decay[0] < 1600
    assert run.elapsed <= run.limit + 8
    assert any(d.kind == "decay_end" for d in run.schedule.decisions)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(1.0, 60.0), min_size=1, max_size=6),
    st.floats(0, 5000),
)
def test_the_clock_ends_every_run_close_to_its_time(speeds: list[float], before: float) -> None:
    run = Clocked(preparation=before).run(lambda step: speeds[step % len(speeds)])
    assert run.elapsed <= max(run.limit, before) + 2 * max(speeds)
    bounds = [run.schedule.bounds(p) for p in run.schedule.phases[1:-1]]
    assert all(first is not None and last is not None for first, last in bounds)


def test_no_time_at_all_ends_the_run_before_its_first_step() -> None:
    run = Clocked(preparation=4000).run(lambda step: 2.0)
    assert run.step == 0


def test_progress_by_the_clock_rises_to_one_in_each_phase() -> None:
    run = Clocked().run(lambda step: 2.0)
    whole = [r for _, r in run.progress if r is not None]
    assert whole == sorted(whole) and whole[-1] == pytest.approx(1.0, abs=0.01)
    last = run.schedule.bounds(run.schedule.phases[1])[1]
    assert last is not None
    first = [p for p, _ in run.progress[1:last] if p is not None]
    assert first == sorted(first)
    assert 0 < first[0] < 0.01 and first[-1] == pytest.approx(1.0, abs=0.01)


def test_hours_end_a_run_that_max_steps_would_let_go_on() -> None:
    run = Clocked()
    run.schedule = make_schedule(hours=1.0, max_steps=100_000)
    run.run(lambda step: 2.0)
    assert run.elapsed <= run.limit and run.step < 2000
    assert run.schedule.decay is not None


def test_max_steps_end_a_run_that_hours_would_let_go_on() -> None:
    run = Clocked()
    run.schedule = make_schedule(hours=1.0, max_steps=100)
    run.run(lambda step: 2.0)
    assert run.step == 100
    assert lengths(run.schedule) == lengths(make_schedule(max_steps=100))


def test_a_resumed_clock_run_replays_its_decisions() -> None:
    run = Clocked().run(lambda step: 2.0)
    again = make_schedule(hours=7.0, decisions=run.schedule.decisions)
    for step in range(1, run.step + 2):
        assert again.phase_at(step) == run.schedule.phase_at(step)
        assert again.lr_at(step) == run.schedule.lr_at(step)


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; from engine.distill.train import guards, journal, phases;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# What the student still lacks, and what it writes itself


LACK = {"qwen": 2.0, "llama": 1.0, "phi": 1.0, "tinyllama": 1.0}


def test_the_unified_mix_follows_what_is_lacking_and_nothing_else_does() -> None:
    schedule = make_schedule(max_steps=100, mix="deficits")
    (decision,) = mix_decision(schedule, 70, LACK)
    after = schedule.with_decision(decision)
    assert after.mix_at(70) == schedule.mix_at(70)
    mix = after.mix_at(71)
    assert sum(mix.values()) == pytest.approx(1.0, abs=1e-3)
    assert mix["qwen"] == pytest.approx(1.5 * 2 / (1.5 * 2 + 3.5), abs=1e-3)
    assert mix["llama"] / mix["phi"] == pytest.approx(1.3 / 1.2, rel=1e-2)
    # one decision a step; the newest counts, also when a resume reads it back
    assert mix_decision(after, 70, LACK) == []
    (second,) = mix_decision(after, 80, {**LACK, "qwen": 1.0})
    later = after.with_decision(second)
    assert later.mix_at(80) == mix and later.mix_at(81) == pytest.approx(
        schedule.mix_at(81), abs=1e-3
    )


def test_no_expert_is_forgotten_however_little_is_lacking_of_it() -> None:
    schedule = make_schedule(max_steps=100, mix="deficits")
    (decision,) = mix_decision(schedule, 70, {**LACK, "qwen": 1e-9, "tinyllama": 1e9})
    mix = schedule.with_decision(decision).mix_at(71)
    shares = schedule.weight_shares()
    for name, share in mix.items():
        assert 0.4 * shares[name] < share < 2.6 * shares[name]
    assert mix["tinyllama"] > shares["tinyllama"] and mix["qwen"] < shares["qwen"]


@pytest.mark.parametrize(
    ("mix", "step", "lack"),
    [
        ("weights", 70, LACK),
        ("deficits", 20, LACK),  # an expert's phase follows
        ("deficits", 70, {**LACK, "phi": None}),
        ("deficits", 70, {**LACK, "phi": float("nan")}),
        ("deficits", 70, {}),
    ],
)
def test_the_mix_stays_by_weight(mix, step, lack) -> None:
    schedule = make_schedule(max_steps=100, mix=mix)
    assert mix_decision(schedule, step, lack) == []


def test_own_writing_begins_once_its_share_of_the_run_is_over() -> None:
    fields = {"max_steps": 100, "on_policy_share": 0.25, "on_policy_from": 0.5}
    schedule = make_schedule(**fields, on_policy_interval=20)
    assert on_policy_decision(schedule, 49, 0.49) == []
    (decision,) = on_policy_decision(schedule, 50, 0.5)
    schedule = schedule.with_decision(decision)
    assert on_policy_decision(schedule, 51, 0.51) == []
    assert schedule.round_at(50) is None
    # tinyllama's phase is steps 49 to 60, the unified one begins at step 61
    rounds = {step: schedule.round_at(step) for step in range(51, 101)}
    assert set(rounds.values()) == {51, 61, 81}
    assert rounds[60] == 51 and rounds[61] == 61 and rounds[80] == 61 and rounds[81] == 81


def test_without_a_known_end_own_writing_begins_with_the_unified_phase() -> None:
    schedule = make_schedule(expert_tokens=10 * TOKENS, on_policy_share=0.25)
    assert on_policy_decision(schedule, 20, None) == []
    assert len(on_policy_decision(run_by_plan(schedule, 60), 60, None)) == 1
    assert on_policy_decision(make_schedule(max_steps=100), 90, 0.9) == []
