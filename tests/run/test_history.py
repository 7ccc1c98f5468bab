"""The history database: what goes in comes out, and what breaks it stops nothing."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from engine.events import (
    CapabilitiesScored,
    CapabilityScore,
    EvalDone,
    ExpertScore,
    LogLine,
    StepDone,
)
from engine.run.history import History
from tests.run.test_state import started, step_done
from tests.support.hosting import REPO


@pytest.fixture
def run(history: History) -> str:
    history.begin_run("r", "train", b'{"seed":1}')
    assert history.begin_attempt("r") == 1
    return "r"


def values(history: History, metric: str = "loss", hi: int = 1000) -> dict[int, float]:
    """The metric's values by step."""
    columns = history.series("r", metric, 0, hi, hi)
    return {c.start: c.first for c in columns if c.first is not None}


def test_events_are_numbered_and_read_back_in_pages(history, run):
    first = history.append(run, 1, [started(), step_done(1)])
    second = history.append(run, 1, [step_done(2), LogLine(text="ü\u2028")])
    assert [e.seq for e in first + second] == [1, 2, 3, 4]
    assert history.events(run) == first + second
    assert history.events(run, after_seq=1, limit=2) == [first[1], second[0]]
    assert history.events(run, up_to=1) == first[:1]
    assert history.events(run, types=["StepDone"]) == [first[1], second[0]]
    assert history.last(run, "StepDone") == second[0]
    assert history.events(run, after_seq=4) == []


def test_numbering_continues_in_another_process(ws, history, run):
    history.append(run, 1, [step_done(1, training_seconds=7.5), step_done(2)])
    history.close()
    other = History(ws.history_file)
    other.begin_run(run, "train", b"{}")
    assert other.begin_attempt(run) == 2
    assert other.append(run, 2, [step_done(3)])[0].seq == 3
    record = other.run(run)
    assert record is not None
    assert (record.attempts, record.last_seq, record.config) == (2, 3, b'{"seed":1}')


def test_training_seconds_are_those_of_the_last_step(history, run):
    assert history.training_seconds(run) == 0.0
    history.append(run, 1, [step_done(1, training_seconds=7.5), LogLine(text="x")])
    assert history.training_seconds(run) == 7.5


def test_the_last_run_is_found_by_job(history, run):
    history.begin_run("d", "download", b"{}")
    last = history.last_run("train"), history.last_run("download"), history.last_run("export")
    assert [r and r.run_id for r in last] == ["r", "d", None]


def test_a_resumed_attempt_supersedes_later_steps(history, run):
    history.append(run, 1, [step_done(n, loss=float(n)) for n in range(1, 151)])
    history.append(run, 1, [EvalDone(step=n, bits_per_byte=1.0) for n in (50, 100, 150)])
    history.begin_attempt(run)
    history.append(run, 2, [started(resumed_from=99)])
    # Void at once, also before they are done again.
    assert max(values(history)) == 99
    assert list(values(history, "bits_per_byte")) == [50]
    history.append(run, 2, [step_done(n, loss=-float(n)) for n in range(100, 121)])
    expected = {n: float(n) for n in range(1, 100)} | {n: -float(n) for n in range(100, 121)}
    assert values(history) == expected
    coarse = history.series(run, "loss", 0, 10**6, 2)
    assert (coarse[0].low, coarse[0].high, coarse[0].count) == (-120.0, 99.0, 120)
    # The events themselves are all kept: what happened happened.
    assert len(history.events(run, types=["StepDone"])) == 171


def test_a_rollback_within_an_attempt_supersedes_too(history, run):
    history.append(run, 1, [step_done(n, loss=1.0) for n in range(1, 31)])
    history.append(run, 1, [EvalDone(step=30, bits_per_byte=1.0)])
    history.append(run, 1, [step_done(n, loss=2.0) for n in range(11, 21)])
    assert values(history) == {n: 1.0 if n <= 10 else 2.0 for n in range(1, 21)}
    assert values(history, "bits_per_byte") == {}


def test_a_fresh_start_supersedes_everything(history, run):
    history.append(run, 1, [EvalDone(bits_per_byte=9.0), step_done(1)])
    history.append(run, 1, [started()])
    assert values(history) == {} and values(history, "bits_per_byte") == {}


def test_each_expert_has_its_own_series(history, run):
    score = ExpertScore(expert="qwen", bits_per_byte=1.5, kl=None, agreement=0.5, positions=9)
    history.append(run, 1, [EvalDone(step=5, bits_per_byte=1.0, scores=(score,))])
    assert values(history, "bits_per_byte/qwen") == {5: 1.5}
    assert values(history, "kl/qwen") == {}
    assert {"bits_per_byte", "agreement/qwen", "kl/qwen"} <= set(history.metrics(run))


def test_each_capability_of_the_student_has_its_own_series(history, run):
    scores = (CapabilityScore(capability="json", right=1, asked=4),)
    for who in ("qwen", "student"):
        history.append(run, 1, [CapabilitiesScored(step=5, who=who, scores=scores)])
    assert values(history, "able/json") == {5: 0.25}
    assert set(history.metrics(run)) == {"able/json"}


def test_reading_a_missing_history_creates_no_file(ws, history):
    assert history.last_run("train") is None
    assert history.events("r") == [] and history.series("r", "loss", 0, 10, 5) == []
    assert not ws.history_file.exists()


def test_foreign_rows_are_skipped_and_counted(ws, history, run):
    stored = history.append(run, 1, [step_done(1), step_done(2), step_done(3)])
    with sqlite3.connect(ws.history_file) as db:
        db.execute('UPDATE events SET body = \'{"type":"StepDo\' WHERE seq = 1')
        db.execute("UPDATE events SET body = x'8004' WHERE seq = 2")
    assert history.events(run, limit=1) == [stored[2]]
    assert history.events(run) == [stored[2]]
    assert history.skipped == 4


def damage(ws) -> None:
    """Overwrite all but the first page."""
    with sqlite3.connect(ws.history_file) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(ws.history_file, "r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (ws.history_file.stat().st_size - 4096))


def check_new_history(ws, history: History) -> None:
    stored = history.append("r", 1, [step_done(50_000)])
    assert history.trouble == ""
    aside = history.take_moved_aside()
    assert aside and (ws.logs_dir / aside).exists()
    assert history.tail("r", "StepDone", 1) == stored
    assert history.series("r", "loss", 50_000, 50_001, 2)[0].last == 2.0


def test_a_file_that_was_damaged_before_is_moved_aside(ws, history, run):
    history.append(run, 1, [step_done(n) for n in range(1, 2001)])
    history.close()
    damage(ws)
    other = History(ws.history_file)
    other.begin_run(run, "train", b"{}")
    other.begin_attempt(run)
    check_new_history(ws, other)


def test_a_file_that_is_damaged_while_it_is_open_is_moved_aside(ws, history, run):
    history.append(run, 1, [step_done(n) for n in range(1, 8001)])
    damage(ws)
    assert history.events(run) == []  # what is still cached hides the damage from writes
    assert "can't be read" in history.trouble
    check_new_history(ws, history)
    assert history.events(run)[0].seq == 8001 - 3999  # with the recent ones


def test_a_locked_database_makes_rows_wait(ws, history, run):
    other = sqlite3.connect(ws.history_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    stored = [history.append(run, 1, [step_done(n)])[0] for n in range(1, 21)]
    assert time.monotonic() - began < 2.5
    assert "locked" in history.trouble
    other.execute("ROLLBACK")
    stored += history.append(run, 1, [step_done(21)])
    assert history.trouble == ""
    assert history.events(run) == stored
    assert len(values(history)) == 21


_FILL = """
import resource, sys
from pathlib import Path
from tests.run.test_state import step_done
from engine.run.history import History
history = History(Path(sys.argv[1]))
history.begin_run("r", "train", b"{}")
attempt = history.begin_attempt("r")
limit = 400_000  # no file may grow over this: writes fail as on a full disk
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for start in range(0, 3000, 10):
    history.append("r", 1, [step_done(n) for n in range(start + 1, start + 11)])
assert history.trouble, "it was not full"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
history.append("r", 1, [step_done(3001)])
assert history.trouble == "", history.trouble
history.close()
"""


def test_a_full_disk_makes_rows_wait(ws, history):
    if resource.getrlimit(resource.RLIMIT_FSIZE)[1] != resource.RLIM_INFINITY:
        pytest.skip("file sizes are limited here")
    subprocess.run([sys.executable, "-c", _FILL, str(ws.history_file)], cwd=REPO, check=True)
    steps = []
    after = 0
    while page := history.events("r", after):
        steps += [e.step for e in page if isinstance(e, StepDone)]
        after = page[-1].seq
    assert steps == list(range(1, 3002))


def test_a_reader_follows_to_a_new_file(ws, history, run):
    history.append(run, 1, [step_done(1)])
    reader = History(ws.history_file)
    assert len(reader.events(run)) == 1
    history.close()
    ws.history_file.unlink()
    history.begin_run("again", "train", b"{}")
    history.append("again", 1, [step_done(1), step_done(2)])
    assert reader.events(run) == [] and len(reader.events("again")) == 2


@pytest.mark.parametrize("how", ["deleted", "replaced", "with its folder", "by no database"])
def test_a_history_that_is_lost_while_it_is_written_is_begun_again(ws, history, run, how):
    before = history.append(run, 1, [started(), *(step_done(n) for n in range(1, 301))])
    copy = ws.root / "other.sqlite"
    other = History(copy)
    other.begin_run("other", "train", b"{}")
    other.append("other", 1, [step_done(1, loss=9.0)])
    other.close()
    if how == "with its folder":
        shutil.rmtree(ws.logs_dir)
    else:
        ws.history_file.unlink()
    if how == "replaced":
        copy.rename(ws.history_file)
    if how == "by no database":
        ws.history_file.write_bytes(b"no database" * 500)
    after = history.append(run, 1, [step_done(301)])
    assert history.take_restarted() and not history.take_restarted()
    assert history.events(run, limit=1000) == [*before, *after]
    assert values(history) == dict.fromkeys(range(1, 302), 2.0)
    reader = History(ws.history_file)  # another process sees the same
    assert reader.events(run, limit=1000) == [*before, *after]
    record = reader.run(run)
    assert record is not None and record.attempts == 1
    assert len(reader.events("other")) == (how == "replaced")


def test_metrics_that_the_history_lost_are_found(history, run):
    events = [step_done(n, loss=float(n)) for n in range(1, 21)]
    history.append(run, 1, [started(), *events[:12]])
    assert history.lacking(run, events) == events[12:]
    history.append(run, 1, events[12:])
    assert history.lacking(run, events) == []
    # A run that went back from step 20 to step 15: only the last of each step counts.
    repeated = [*events, *(step_done(n, loss=-float(n)) for n in range(16, 19))]
    assert history.lacking("unknown", repeated) == events[:15] + repeated[20:]
