"""Verdicts on steps with non-finite numbers and gradient spikes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import GuardsConfig
from engine.distill.train.guards import GradGuard

CONFIG = GuardsConfig(max_non_finite=3, max_rollbacks=2, spike_factor=10.0, spike_window=16)


def settled(norm: float = 1.0) -> GradGuard:
    """A guard that knows its median."""
    guard = GradGuard(CONFIG)
    for _ in range(16):
        assert guard.judge(2.0, norm) == "ok"
    return guard


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 2.0])
@pytest.mark.parametrize("norm", [math.nan, math.inf, 1.0])
def test_only_finite_numbers_pass(loss: float, norm: float) -> None:
    finite = math.isfinite(loss) and math.isfinite(norm)
    assert settled().judge(loss, norm) == ("ok" if finite else "non_finite")


def test_non_finite_steps_in_a_row_roll_back_and_then_stop() -> None:
    def bad_steps(rollbacks: int) -> list[str]:
        guard = GradGuard(CONFIG, rollbacks)
        return [guard.judge(math.nan, 1.0) for _ in range(3)]

    assert bad_steps(0) == bad_steps(1) == ["non_finite", "non_finite", "rollback"]
    assert bad_steps(2) == ["non_finite", "non_finite", "stop"]


def test_a_finite_step_ends_the_row() -> None:
    guard = settled()
    bad, good, spike = (math.nan, 1.0), (2.0, 1.0), (2.0, 99.0)
    verdicts = [guard.judge(*step) for step in (bad, bad, good, bad, bad, spike, bad, bad)]
    assert verdicts == [
        *["non_finite"] * 2,
        "ok",
        *["non_finite"] * 2,
        "spike",
        *["non_finite"] * 2,
    ]
    assert guard.skipped_non_finite == 6 and guard.skipped_spikes == 1


def test_a_norm_over_ten_medians_is_a_spike_and_stays_out_of_the_median() -> None:
    guard = settled(norm=2.0)
    assert guard.judge(2.0, 20.0) == "ok"
    for _ in range(20):
        assert guard.judge(2.0, 20.01) == "spike"
        assert guard.judge(2.0, 200.0) == "spike"
        assert guard.judge(2.0, 2.0) == "ok"
    assert guard.median == 2.0
    assert guard.skipped_spikes == 40


def test_no_spike_is_called_before_a_quarter_of_the_window() -> None:
    guard = GradGuard(CONFIG)
    assert [guard.judge(9.0, n) for n in (1.0, 1e6, 1.0, 1.0)] == ["ok"] * 4
    assert guard.judge(9.0, 1e6) == "spike"


def test_a_quarter_of_a_window_of_spikes_is_the_new_normal() -> None:
    guard = settled(norm=1.0)
    assert [guard.judge(2.0, n) for n in (40.0, 50.0, 60.0, 50.0)] == [*["spike"] * 3, "ok"]
    assert guard.median == 50.0
    assert guard.judge(2.0, 400.0) == "ok"
    assert guard.judge(2.0, 501.0) == "spike"


def test_a_row_of_spikes_is_skipped_three_times_and_then_stepped_out_of() -> None:
    guard = GradGuard(GuardsConfig(max_spikes=3, spike_window=64))
    for _ in range(16):
        guard.judge(2.0, 1.0)
    verdicts = [guard.judge(8.0, 70.0) for _ in range(5)]
    assert verdicts == ["spike", "spike", "spike", "ok", "ok"]
    assert guard.median == 1.0 and guard.skipped_spikes == 3
    assert guard.judge(2.0, 1.0) == "ok"
    assert guard.judge(8.0, 70.0) == "spike"


def test_the_median_follows_the_last_window_only() -> None:
    guard = settled(norm=1.0)
    for _ in range(9):
        guard.judge(2.0, 5.0)
    assert guard.median == 5.0


steps = st.lists(
    st.tuples(st.just(1.0) | st.just(math.nan), st.sampled_from([0.1, 0.5, 1.0, 30.0, math.inf])),
    max_size=60,
)


@settings(deadline=None)
@given(steps, steps)
def test_a_guard_restored_from_json_goes_on_exactly(
    before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> None:
    guard = GradGuard(CONFIG)
    for step in before:
        guard.judge(*step)
    restored = GradGuard(CONFIG, state=json.loads(json.dumps(guard.state, allow_nan=False)))
    assert [restored.judge(*s) for s in after] == [guard.judge(*s) for s in after]
    assert restored.state == guard.state


def test_a_smallest_window_still_works() -> None:
    guard = GradGuard(GuardsConfig(spike_window=1))
    assert [guard.judge(1.0, n) for n in (1.0, 1000.0, 1.0)] == ["ok"] * 3
