"""Curves: reduction to columns, smoothing, growth by live values, axis ticks and ranges."""

from __future__ import annotations

import math
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import StepDone
from engine.run import rollup
from engine.run.rollup import Column, SeriesWriter, read_columns
from gladius_tui.app.model.axes import log_ticks, step_label, step_ticks, ticks, value_range
from gladius_tui.app.model.curves import Curve, View, on_log
from gladius_tui.app.model.metrics import PANELS, panel_of, style_of
from gladius_tui.format import axis_number


def step(number: int, loss: float | None) -> StepDone:
    return StepDone(
        **{"step": number, "phase": 1, "loss": loss, "kl": None, "ce": None, "lr": 0.0},
        **{"grad_norm": None, "tokens": 0, "tokens_seen": 0, "tokens_per_sec": 0.0},
        step_seconds=0.0,
    )


def columns(values, metric: str = "loss") -> Curve:
    made = [Column(start=n, stop=n + 1) for n in range(len(values))]
    curve = Curve(metric, made, len(values))
    for n, value in enumerate(values):
        curve.add(n, value)
    return curve


steps = st.lists(
    st.one_of(st.none(), st.floats(0.1, 100.0)), min_size=1, max_size=400
)  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(steps, st.integers(1, 399), st.sampled_from([2, 10, 60]))
def test_a_curve_grown_live_equals_the_curve_read_from_the_history(values, cut, most):
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(rollup.SCHEMA)
    writer = SeriesWriter(db)
    cut = min(cut, len(values))
    writer.add(1, [step(n, value) for n, value in enumerate(values[:cut])])
    curve = Curve("loss", read_columns(db, 1, "loss", 0, cut, most), most, cut - 1)
    for n, value in enumerate(values[cut:], cut):
        if not curve.add(n, value):
            break
    for column in curve.columns:
        inside = [
            v for v in values[column.start : min(column.stop, curve.last_step + 1)] if v is not None
        ]
        assert column.count == len(inside)
        if inside:
            assert (column.low, column.high) == (min(inside), max(inside))
            assert (column.first, column.last) == (inside[0], inside[-1])
            assert column.mean == pytest.approx(math.fsum(inside) / len(inside))


def test_the_average_is_exact_at_one_step_a_column():
    values = [float(n % 7) for n in range(200)]
    (line,) = columns(values).smooth(0.9)
    total = weight = 0.0
    for n, value in enumerate(values):
        total, weight = 0.9 * total + 0.1 * value, 0.9 * weight + 0.1
        assert line[1][n] == pytest.approx(total / weight)
    assert columns([2.0] * 50).smooth(0.995)[0][1][-1] == pytest.approx(2.0)


def test_a_missing_value_is_a_gap_except_between_evaluations():
    values = [1.0, None, 2.0, 3.0, math.nan, 4.0]
    assert [len(xs) for xs, _ in columns(values).raw()] == [1, 2, 1]
    assert [len(xs) for xs, _ in columns(values).smooth(0.9)] == [1, 2, 1]
    assert [len(xs) for xs, _ in columns(values, "bits_per_byte").raw()] == [4]


def test_no_more_than_two_points_a_column_and_the_extremes_are_kept():
    made = [
        Column(start=n, stop=n + 10, low=1.0, high=9.0, first=5.0, last=4.0, count=10)
        for n in range(0, 1000, 10)
    ]
    (line,) = Curve("loss", made).raw()
    assert len(line[0]) == 200 and set(line[1]) == {1.0, 9.0}
    assert line[1][:2] == [9.0, 1.0], "the value falls within the column"


def test_a_curve_that_grew_too_long_or_went_back_must_be_read_again():
    curve = columns([1.0] * 40)
    assert curve.add(40, 1.0)
    assert not curve.add(39, 1.0)
    answers = [curve.add(n, 1.0) for n in range(41, 60)]
    assert answers[0] and not answers[-1]


def test_values_without_a_logarithm_are_gaps():
    assert on_log([([0.0, 1.0, 2.0, 3.0], [10.0, 0.0, 100.0, 1000.0])]) == [
        ([0.0], [1.0]),
        ([2.0, 3.0], [2.0, 3.0]),
    ]


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_few_round_and_inside(low, span, most):
    high = low + span
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    slack = (high - low) * 1e-6 + abs(low) * 1e-9
    assert all(low - slack <= tick <= high + slack for tick in found)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e9), st.integers(8, 12))
def test_an_axis_of_values_has_at_least_four_ticks(low, span, most):
    high = low + span
    if high - low > 1e-9 * high:
        assert len(ticks(low, high, most)) >= 4


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(2, 12))
def test_the_axis_of_steps_has_whole_steps_only(lo, span, most):
    found = step_ticks(lo, lo + span, most)
    assert found and all(isinstance(step, int) and lo <= step <= lo + span for step in found)
    spacing = found[1] - found[0] if len(found) > 1 else span
    labels = [step_label(step, spacing) for step in found]
    assert len(set(labels)) == len(labels)


def test_outliers_are_clipped_and_a_wide_range_is_not():
    values = [2.0 + n % 10 / 10 for n in range(200)]
    assert value_range([*values, 90.0], clip=True)[1] < 4  # type: ignore[index]
    assert value_range([*values, 90.0], clip=False)[1] > 90  # type: ignore[index]
    assert value_range([*values, 3.0], clip=True) == value_range([*values, 3.0], clip=False)
    assert value_range([1.0, 100.0], clip=True)[1] > 100  # type: ignore[index]
    assert value_range([], clip=True) is None


@given(st.floats(-6, 4), st.floats(0.05, 6), st.integers(2, 12))
def test_ticks_of_a_log_axis_are_few_and_inside(low, span, most):
    found = log_ticks(low, low + span, most)
    assert 1 <= len(found) <= most + 1
    assert all(value > 0 for value in found)


def test_numbers_are_short():
    values = (0, 12_000, 2.5, 0.0003, 0.00025, 1e6, 0.25)
    shown = ["0", "12k", "2.5", "3e-4", "2.5e-4", "1M", "0.25"]
    assert [axis_number(v) for v in values] == shown


views = st.lists(
    st.sampled_from(["in", "out", "left", "right"]), max_size=20
)  # fmt: skip


@given(views, st.integers(0, 100_000))
def test_zoom_and_pan_stay_within_the_run(moves, newest):
    view = View()
    for move in moves:
        if move in ("in", "out"):
            view = view.zoomed(0.5 if move == "in" else 2.0, newest)
        else:
            view = view.panned(-0.25 if move == "left" else 0.25, newest)
        lo, hi = view.bounds(newest)
        assert 0 <= lo < hi <= newest + 1


def test_zoomed_in_it_follows_the_run_until_it_is_panned_back():
    view = View().zoomed(0.5, 1000)
    assert view.bounds(1000)[1] == 1001 and view.bounds(1100)[1] == 1101
    back = view.panned(-0.25, 1000)
    assert back.bounds(1000) == back.bounds(1100)
    forth = back.panned(0.25, 1000)
    assert forth.end is None
    assert forth.zoomed(2.0, 1000).bounds(1000) == (0, 1001)


def test_metrics_of_one_unit_share_a_panel_and_bits_are_never_on_the_axis_of_nats():
    assert panel_of("kl") == panel_of("loss") == panel_of("ce")
    assert panel_of("bits_per_byte") == panel_of("bits_per_byte/qwen") != panel_of("loss")
    assert panel_of("agreement/qwen") == panel_of("agreement/phi") != panel_of("lr")
    for metric in (*rollup.STEP_METRICS, "bits_per_byte", "kl/qwen", "update/mlp", "able/json"):
        assert panel_of(metric) in PANELS


def test_a_metric_has_one_colour_and_mark_whatever_else_is_shown():
    experts = ["qwen", "llama"]
    inside = [style_of(metric, experts) for metric in ("loss", "kl", "ce")]
    assert len(set(inside)) == 3 and len({mark for _, mark in inside}) == 3
    of_experts = [style_of(f"bits_per_byte/{name}", experts) for name in experts]
    assert len({style_of("bits_per_byte", experts), *of_experts}) == 3
