"""The journal: decisions on disk before they take effect, and replayed as they were made."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engine.config import RunConfig, ScheduleConfig
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Decision, Schedule, plan_phases
from engine.errors import GladiusError

DECISIONS = [
    Decision(20, "phase_end", 1, "its share of the hours is over"),
    Decision(31, "micro_batch", 4, "out of memory"),
    Decision(31, "activation_checkpointing", True, "out of memory"),
    Decision(31, "device", "cpu", "out of memory"),
    Decision(25, "rollback", 0.5, "3 steps were not finite"),
    Decision(40, "decay_start", 12, "the hours are nearly over"),
    Decision(44, "decay_end", 50, "the hours are nearly over"),
]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def fill(journal: Journal) -> None:
    for decision in DECISIONS:
        journal.append(decision)


def test_decisions_are_read_back_in_order_with_their_types(journal: Journal) -> None:
    assert journal.read() == []
    fill(journal)
    read = journal.read()
    assert read == DECISIONS
    assert [type(d.value) for d in read] == [type(d.value) for d in DECISIONS]


def test_an_incomplete_last_line_is_skipped_and_removed_by_the_next_append(
    journal: Journal,
) -> None:
    fill(journal)
    whole = journal.path.read_bytes()
    for length in range(1, len(whole.splitlines()[-1]) + 1):
        journal.path.write_bytes(whole[:-length])
        assert journal.read() == DECISIONS[:-1]
    journal.append(DECISIONS[-1])
    assert journal.read() == DECISIONS
    assert journal.path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"{}", b"\x00\x00", b'{"step": 3, "kind": "party", "value": 1}', b""]
)
def test_a_damaged_line_is_named_and_not_skipped(journal: Journal, line: bytes) -> None:
    fill(journal)
    lines = journal.path.read_bytes().splitlines()
    lines[2] = line
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(GladiusError, match=r"journal\.jsonl line 3 is damaged"):
        journal.read()


def test_a_changed_digit_is_found(journal: Journal) -> None:
    """It is a valid decision: without the digests it would be obeyed."""
    fill(journal)
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole.replace(b'"value":0.5', b'"value":0.6'))
    with pytest.raises(GladiusError, match="line 5 is damaged"):
        journal.read()
    lines = whole.splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[:2] + lines[3:]))  # a line was removed
    with pytest.raises(GladiusError, match="line 3 is damaged"):
        journal.read()


def test_a_journal_without_digests_is_read_and_continued(journal: Journal) -> None:
    old = b"".join(msgspec.json.encode(d) + b"\n" for d in DECISIONS[:3])
    journal.path.write_bytes(old)
    assert journal.read() == DECISIONS[:3]
    journal.append(DECISIONS[3])
    assert journal.read() == DECISIONS[:4]
    changed = journal.path.read_bytes().replace(b'"step":20', b'"step":21')
    journal.path.write_bytes(changed)  # the later line protects those before it
    with pytest.raises(GladiusError, match="damaged"):
        journal.read()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-40],
        lambda data: data.replace(b'"value":4', b'"value":8'),
        lambda data: b"\xff" + data,
        lambda data: b"[" * 100_000 + b"\n",
        lambda data: b'{"step":1,"kind":"phase_end","value":1}\n',
    ],
)
def test_a_damaged_journal_is_restored_from_the_checkpoint(journal: Journal, damage) -> None:
    fill(journal)
    stored = journal.data()
    assert journal.restore(stored) == ""
    journal.path.write_bytes(damage(stored))
    assert "restored from the checkpoint" in journal.restore(stored)
    assert Journal(journal.path).read() == DECISIONS
    journal.append(DECISIONS[0])
    assert Journal(journal.path).read() == [*DECISIONS, DECISIONS[0]]


def test_decisions_after_the_checkpoint_stay_up_to_the_damaged_one(journal: Journal) -> None:
    for decision in DECISIONS[:3]:
        journal.append(decision)
    stored = journal.data()
    for decision in DECISIONS[3:]:
        journal.append(decision)
    assert journal.restore(stored) == ""
    assert journal.read() == DECISIONS
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"value":12', b'"value":13'))
    assert "line 6 is damaged" in journal.restore(stored)
    assert journal.read() == DECISIONS[:5]


def test_a_truncated_journal_is_not_taken_for_a_damaged_one(journal: Journal) -> None:
    """A run that resumes from before its decay decides about its decay again; the checkpoint from
    before it has a copy of the former decision."""
    fill(journal)
    stored = journal.data()
    journal.truncate(40)
    assert journal.restore(stored) == ""
    assert journal.read() == [d for d in DECISIONS if d.step < 40]
    journal.append(Decision(60, "decay_start", 20, "longer"))
    assert journal.restore(stored) == ""
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"value":4', b'"value":8'))
    assert "restored" in journal.restore(stored)


def test_truncate_removes_the_decisions_from_a_step_on(journal: Journal) -> None:
    fill(journal)
    journal.truncate(40)
    assert journal.read() == [d for d in DECISIONS if d.step < 40]
    journal.append(DECISIONS[-1])
    assert journal.read()[-1] == DECISIONS[-1]


def test_a_fresh_run_has_no_decisions(journal: Journal) -> None:
    journal.clear()
    assert not journal.path.exists()
    fill(journal)
    journal.clear()
    assert journal.read() == []


APPEND = """
import os, resource, signal, sys
from pathlib import Path
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Decision
from engine.errors import GladiusError
path, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    Journal(path).append(Decision(7, "phase_end", 1, "test"))
except GladiusError as error:
    sys.exit(str(error))
os.kill(os.getpid(), signal.SIGKILL)
"""


def append_in_a_process(journal: Journal, limit: int = 0) -> subprocess.CompletedProcess[str]:
    """One decision by a process that kills itself afterwards; `limit`: bytes of a full disk."""
    command = [sys.executable, "-c", APPEND, str(journal.path), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_decision_survives_a_kill_right_after_it(journal: Journal) -> None:
    assert append_in_a_process(journal).returncode == -signal.SIGKILL
    assert journal.read() == [Decision(7, "phase_end", 1, "test")]


def test_a_full_disk_gives_one_clear_line_and_an_intact_journal(journal: Journal) -> None:
    fill(journal)
    before = journal.path.read_bytes()
    done = append_in_a_process(journal, limit=len(before) + 10)
    assert done.returncode == 1
    assert "free some disk space" in done.stderr and len(done.stderr.splitlines()) == 1
    assert journal.path.read_bytes() == before


def test_a_replayed_rollback_lowers_the_rate_from_its_checkpoint_on_and_not_before(
    journal: Journal,
) -> None:
    class Expert(msgspec.Struct):
        name: str = "one"
        title: str = "One"
        weight: float = 1.0

    config = RunConfig(schedule=ScheduleConfig(max_steps=100, warmup_steps=0))
    phases = plan_phases(config, [Expert()])
    uninterrupted = Schedule(config, phases)
    journal.append(Decision(30, "rollback", 0.5, "3 steps were not finite"))
    resumed = Schedule(config, phases, journal.read())
    for step in range(1, 101):
        factor = 1.0 if step <= 30 else 0.5
        assert resumed.lr_at(step) == uninterrupted.lr_at(step) * factor
        assert resumed.phase_at(step) == uninterrupted.phase_at(step)
