"""Events in the history: small, and bit for bit the same when they are read."""

from __future__ import annotations

import random
import sqlite3

import msgspec
import pytest

from engine.events import HardwareRead, StepDone, decode_event, encode
from engine.run.compaction import pack, unpack
from engine.run.history import History
from tests.support.hostile_events import hostile_events
from tests.support.recording import recorded


def step(n: int, rng: random.Random) -> StepDone:
    """A step whose numbers have all their digits, as real ones."""
    return StepDone(
        step=n, time=1.7e9 + n * 0.7 + rng.random(), phase=1, expert="smollm2",
        loss=rng.random() * 5, kl=rng.random(), ce=rng.random(), lr=rng.random() / 1000,
        grad_norm=rng.random(), tokens=2048, tokens_seen=2048 * n,
        tokens_per_sec=2900 + rng.random(), step_seconds=rng.random(), mean_weight=rng.random(),
        phase_progress=rng.random(), run_progress=rng.random(), phase_eta=rng.random(),
        run_eta=rng.random(), training_seconds=n * rng.random(),
    )  # fmt: skip


def test_a_thousand_steps_take_less_than_a_megabyte_while_they_are_written(tmp_path):
    """They took 5 MB: 0.9 MB in the database and 4.2 MB in its write-ahead log."""
    rng = random.Random(1)
    history = History(tmp_path / "history.sqlite")
    history.begin_run("r", "train", b"{}")
    attempt = history.begin_attempt("r")
    stored = []
    for n in range(1, 1001):
        events = [step(n, rng)]
        if n % 3 == 0:
            events.append(
                HardwareRead(time=1.7e9 + n, cpu_percent=rng.random(), ram_used=n, ram_total=n)
            )
        stored += history.append("r", attempt, events)
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert total < 1_000_000, total
    # Nothing is lost: events, the newest ones by name, and the series.
    assert history.events("r", limit=10_000) == stored
    assert history.tail("r", "StepDone", 2) == [e for e in stored if e.step > 998][:2]
    columns = history.series("r", "loss", 1, 1001, columns=1000)
    assert [c.last for c in columns] == [e.loss for e in stored if isinstance(e, StepDone)]
    history.close()
    assert (tmp_path / "history.sqlite").stat().st_size < 600_000


def test_every_event_is_read_as_it_was_written():
    for event in [*recorded()[:2000], *hostile_events("✓ \U0001f600"), *hostile_events()]:
        line = encode(event)
        packed = pack(line)
        assert len(packed) <= len(line)
        assert encode(decode_event(unpack(packed))) == encode(decode_event(line))


def test_damaged_and_older_rows(tmp_path):
    line = encode(step(1, random.Random(1)))
    packed = pack(line)
    assert isinstance(packed, bytes) and unpack(line.decode()) == line.decode()
    for damaged in (packed[:-4], packed[:1], packed[:9] + b"\xff\xff" + packed[11:]):
        with pytest.raises((ValueError, msgspec.MsgspecError)):
            decode_event(unpack(damaged))
    history = History(tmp_path / "h")
    history.begin_run("r", "train", b"{}")
    (first,) = history.append("r", history.begin_attempt("r"), [step(1, random.Random(1))])
    with sqlite3.connect(tmp_path / "h") as db:  # rows of an earlier version, and a damaged one
        row = "INSERT INTO events VALUES (1, ?, 1, 2, 'StepDone', ?)"
        db.execute(row, (2, encode(msgspec.structs.replace(first, seq=2)).decode()))
        db.execute(row, (3, packed[:-4]))
    assert [event.seq for event in history.events("r")] == [1, 2] and history.skipped == 1
    history.close()
