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


def test_a_torn_last_line_is_skipped_and_cut_off_by_the_next_one(journal: Journal) -> None:
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
def test_a_damaged_line_is_named_and_never_passed_over(journal: Journal, line: bytes) -> None:
    fill(journal)
    lines = journal.path.read_bytes().splitlines()
    lines[2] = line
    journal.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(GladiusError, match=r"journal\.jsonl line 3 is damaged"):
        journal.read()


def test_truncate_forgets_what_was_decided_from_a_step_on(journal: Journal) -> None:
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


def test_a_decision_outlives_a_kill_right_after_it(journal: Journal) -> None:
    assert append_in_a_process(journal).returncode == -signal.SIGKILL
    assert journal.read() == [Decision(7, "phase_end", 1, "test")]


def test_a_full_disk_is_one_clear_line_and_leaves_the_journal_whole(journal: Journal) -> None:
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
    undisturbed = Schedule(config, phases)
    journal.append(Decision(30, "rollback", 0.5, "3 steps were not finite"))
    resumed = Schedule(config, phases, journal.read())
    for step in range(1, 101):
        factor = 1.0 if step <= 30 else 0.5
        assert resumed.lr_at(step) == undisturbed.lr_at(step) * factor
        assert resumed.phase_at(step) == undisturbed.phase_at(step)
