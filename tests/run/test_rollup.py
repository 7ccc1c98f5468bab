"""Charts from roll-ups say what the values themselves would say."""

from __future__ import annotations

import itertools
import math
import sqlite3
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.events import StepDone
from engine.run import rollup
from engine.run.rollup import SeriesWriter, read_columns


def step(number: int, loss: float | None) -> StepDone:
    return StepDone(
        step=number,
        phase=1,
        loss=loss,
        kl=None,
        ce=None,
        lr=0.0,
        grad_norm=None,
        tokens=0,
        tokens_seen=0,
        tokens_per_sec=0.0,
        step_seconds=0.0,
    )


def database() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(rollup.SCHEMA)
    return db


def check(db: sqlite3.Connection, truth: dict[int, float | None], lo: int, hi: int, n: int):
    columns = read_columns(db, 1, "loss", lo, hi, n)
    assert len(columns) <= max(n, 2)
    assert columns[0].start <= lo and columns[-1].stop >= hi
    width = columns[0].stop - columns[0].start
    for column, following in itertools.pairwise(columns):
        assert column.stop == following.start
    for column in columns:
        assert column.stop - column.start == width and column.start % width == 0
        inside = [
            value
            for number, value in sorted(truth.items())
            if column.start <= number < column.stop and value is not None
        ]
        assert column.count == len(inside)
        if inside:
            found = (column.low, column.high, column.first, column.last)
            assert found == (min(inside), max(inside), inside[0], inside[-1])
            scale = max(map(abs, inside))
            assert column.mean is not None
            assert abs(column.mean - math.fsum(inside) / len(inside)) <= 1e-9 * scale
        else:
            assert column.low is column.high is column.first is column.last is None
            assert column.mean is None


losses = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(math.nan), st.just(math.inf))
# Runs of steps; each begins somewhere, perhaps before the end of the one before (a rollback).
runs = st.lists(
    st.tuples(st.integers(0, 6000), st.lists(losses, min_size=1, max_size=300)), max_size=5
)


@settings(max_examples=60, deadline=None)
@given(runs, st.integers(0, 6000), st.integers(1, 6000), st.integers(1, 300))
def test_columns_equal_those_of_the_raw_values(written, lo, length, columns):
    db = database()
    writer = SeriesWriter(db)
    truth: dict[int, float | None] = {}
    for start, series in written:
        # Written in one batch, in which the steps may go back as well.
        writer.add(1, [step(start + i, loss) for i, loss in enumerate(series)])
        truth = {number: value for number, value in truth.items() if number < start}
        for i, loss in enumerate(series):
            truth[start + i] = loss if loss is not None and math.isfinite(loss) else None
    if written:
        check(db, truth, lo, lo + length, columns)
    else:
        assert read_columns(db, 1, "loss", lo, lo + length, columns) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.integers(1, 5000),
    st.data(),
)
def test_a_cut_keeps_earlier_steps_at_every_level(jumps, stride, data):
    db = database()
    writer = SeriesWriter(db)
    truth: dict[int, float | None] = {}
    number = 0
    for jump in jumps:
        number += jump * stride
        writer.add(1, [step(number, float(number % 97))])
        truth[number] = float(number % 97)
    at = data.draw(st.integers(0, number + 1))
    writer.cut(1, at)
    truth = {n: value for n, value in truth.items() if n < at}
    for columns in (2, 7, 50):
        check(db, truth, 0, number + 1, columns)


def test_one_batch_may_go_back_in_its_middle():
    db = database()
    SeriesWriter(db).add(1, [step(n, 1.0) for n in range(1, 101)] + [step(60, 5.0)])
    truth: dict[int, float | None] = dict.fromkeys(range(1, 60), 1.0) | {60: 5.0}
    check(db, truth, 0, 128, 4)


def test_a_spike_and_both_ends_stay_visible_among_a_million_steps():
    db = database()
    # Every value of the table is made in SQL, and one roll-up row by hand: the writer's speed is
    # not what is tested here.
    writer = SeriesWriter(db)
    writer.add(1, [step(0, 0.5)])
    numbers = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 999999)"
        " INSERT INTO points SELECT (SELECT id FROM series WHERE metric = 'loss'), i,"
        " CASE i WHEN 777777 THEN 1e6 ELSE 1.0 / i END FROM n"
    )
    db.execute("BEGIN")
    db.execute(numbers)
    for level in range(1, rollup.LEVELS + 1):
        db.execute(
            "INSERT OR REPLACE INTO rollups SELECT series, ?, step / ?, min(value), max(value),"
            " count(value), total(value) FROM points"
            " WHERE series = (SELECT id FROM series WHERE metric = 'loss')"
            " GROUP BY series, step / ?",
            (level, 64**level, 64**level),
        )
    db.execute("COMMIT")
    took = []
    for lo, hi in ((0, 1_000_000), (0, 1_000_000), (0, 1_000_000), (700_000, 800_000)):
        began = time.perf_counter()
        columns = read_columns(db, 1, "loss", lo, hi, 200)
        took.append(time.perf_counter() - began)
        assert 150 <= len(columns) <= 200
        assert max(column.high or 0 for column in columns) == 1e6
        assert sum(column.count for column in columns) >= hi - lo
    assert columns[-1].last == 1.0 / (columns[-1].stop - 1)
    assert min(took) < 0.1


def test_an_older_database_without_means_is_read_and_upgraded():
    db = database()
    db.execute("DROP TABLE rollups")
    db.executescript(rollup.SCHEMA.replace("    total REAL, ", "    "))
    db.execute("INSERT INTO series VALUES (1, 1, 'loss')")
    db.executemany("INSERT INTO points VALUES (1, ?, ?)", [(n, 2.0) for n in range(1024)])
    db.executemany(
        "INSERT INTO rollups VALUES (1, 1, ?, 2.0, 2.0, 64)", [(bucket,) for bucket in range(16)]
    )
    columns = read_columns(db, 1, "loss", 0, 1024, 2)
    assert [(c.low, c.count, c.mean) for c in columns] == [(2.0, 512, None)] * 2
    rollup.upgrade(db)
    writer = SeriesWriter(db)
    writer.add(1, [step(n, 4.0) for n in range(1024, 2048)])
    columns = read_columns(db, 1, "loss", 0, 2048, 4)
    assert [c.mean for c in columns] == [None, None, 4.0, 4.0]
