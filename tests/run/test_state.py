"""The state file, and the lock that names the runner of a job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from engine.errors import ExitCode, LockedError
from engine.events import (
    CheckpointSaved,
    EvalDone,
    GuardTripped,
    PhaseStarted,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    TextReason,
    TextsRead,
)
from engine.run.history import History
from engine.run.lock import (
    Owner,
    hold_lock,
    identity_of,
    lock_owner,
    lock_path,
    restore_lock,
)
from engine.run.state import RunState, StateFile, read_state, state_of, view_of
from engine.run.view import RunView
from engine.workspace import runtime_dir
from tests.support.paths import REPO
from tests.support.toy_job import PLAN, ToyConfig
from tests.support.waiting import until


def step_done(step: int, **fields) -> StepDone:
    values = {
        "phase": 1,
        "loss": 2.0,
        "kl": 1.0,
        "ce": 3.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens": 8,
        "tokens_seen": 8 * step,
        "tokens_per_sec": 10.0,
        "step_seconds": 0.1,
    }
    return StepDone(step=step, **{**values, **fields})


def fold(*events) -> RunState:
    view = RunView()
    view.take(events)
    return state_of(view)


def started(**fields) -> RunStarted:
    return RunStarted(
        time=100.0, run_id="r", job="train", attempt=1, pid=1, phases=PLAN, preset="nano", **fields
    )


def phase(number: int, expert: str | None) -> PhaseStarted:
    return PhaseStarted(phase=number, phases=2, name="p", expert=expert)


def test_events_fold_into_the_state():
    state = fold(
        started(current_params=5, target_params=7),
        phase(1, "alpha"),
        step_done(1, training_seconds=1800.0),
        EvalDone(step=1, bits_per_byte=1.5),
        CheckpointSaved(step=1, time=103.0, path="c", bytes=1, seconds=0.1),
        phase(2, "beta"),
    )
    assert (state.status, state.phase, state.phases, state.current_expert) == (
        "training",
        2,
        2,
        "beta",
    )
    assert state.experts_completed == ("alpha",)
    assert (state.step, state.tokens_seen, state.loss, state.bits_per_byte) == (1, 8, 2.0, 1.5)
    assert (state.current_params, state.target_params) == (5, 7)
    assert (state.training_hours, state.started_at) == (0.5, 100.0)
    assert (state.last_checkpoint, state.last_checkpoint_step) == ("c", 1)


def test_pauses_and_ends_change_the_status():
    assert fold(started(), RunPaused()).status == "paused"
    assert fold(started(), RunPaused(), RunResumed()).status == "training"
    assert fold(started(), RunEnded(status="stopped")).status == "stopped"
    failed = fold(started(), RunEnded(status="failed", reason="no"))
    assert (failed.status, failed.last_error, failed.pid) == ("failed", "no", None)
    completed = fold(started(), phase(2, "beta"), RunEnded(status="completed"))
    assert (completed.status, completed.experts_completed) == ("completed", ("alpha", "beta"))


def test_a_resumed_attempt_keeps_what_the_run_had_and_a_fresh_one_does_not():
    before = [started(), phase(1, "alpha"), step_done(30)]
    resumed = fold(*before, msgspec.structs.replace(started(resumed_from=20), time=999.0))
    assert (resumed.step, resumed.started_at, resumed.tokens_seen) == (20, 100.0, 240)
    fresh = fold(*before, msgspec.structs.replace(started(), time=999.0))
    assert (fresh.step, fresh.started_at, fresh.tokens_seen) == (0, 999.0, 0)


def test_a_stored_state_continues_as_a_view_and_is_the_same_state_again():
    stored = fold(
        started(current_params=5, target_params=7),
        phase(2, "beta"),
        step_done(30, expert="beta", phase=2, training_seconds=1800.0),
        EvalDone(step=30, bits_per_byte=1.5),
        CheckpointSaved(step=30, time=103.0, path="c", bytes=1, seconds=0.1),
    )
    view = view_of(stored)
    view.status = "training"
    assert state_of(view) == stored
    view.take([msgspec.structs.replace(started(resumed_from=30), time=999.0)])
    again = state_of(view)
    assert (again.step, again.started_at, again.tokens_seen) == (30, 100.0, 240)


def test_a_paused_run_that_stalls_is_paused_again_afterwards():
    stalled = [started(), RunPaused(), GuardTripped(guard="stall", action="stalled")]
    assert fold(*stalled).status == "paused"
    view = RunView()
    view.take([*stalled, GuardTripped(guard="stall", action="going on")])
    assert view.status == "paused"


def test_a_root_without_a_run_reads_not_started(ws):
    assert read_state(ws) == RunState()


DAMAGED = [b'{"status": "trai', b"\xff\xfe", b"[" * 100_000, b"\x00" * 40, b"[]"]


@pytest.mark.parametrize("content", DAMAGED, ids=range(5))
def test_a_damaged_state_file_is_reported_and_stops_nothing(ws, content):
    ws.state_file.write_bytes(content)
    state = read_state(ws)
    assert state.status == "not_started" and "is damaged" in state.last_error
    StateFile(ws, "r").write_if_due()
    assert read_state(ws).status == "training"


@pytest.mark.parametrize("content", [None, *DAMAGED], ids=range(6))
def test_the_state_is_rebuilt_from_the_history(ws, content):
    history = History(ws.history_file)
    history.begin_run("r", "train", b"{}")
    events = [
        started(),
        step_done(1),
        step_done(2),
        CheckpointSaved(step=2, path="p", bytes=1, seconds=1.0),
    ]
    history.append("r", 1, [*events, RunEnded(step=2, status="stopped")])
    history.close()
    (ws.checkpoints_dir / "step-000000002").mkdir()
    if content is not None:
        ws.state_file.write_bytes(content)
    state = read_state(ws)
    assert (state.status, state.run_id, state.step) == ("stopped", "r", 2)
    assert (state.preset, state.loss, state.last_checkpoint_step) == ("nano", 2.0, 2)


def test_an_interrupted_run_is_rebuilt_as_failed(ws):
    history = History(ws.history_file)
    history.begin_run("r", "train", b"{}")
    history.append("r", 1, [started(), step_done(3)])
    history.close()
    ws.state_file.write_bytes(b"{")
    state = read_state(ws)
    assert state.status == "failed" and "gladius_train resume" in state.last_error


def test_without_history_the_checkpoints_tell_the_step(ws):
    ws.state_file.write_bytes(b"{")
    ws.history_file.write_bytes(b"nothing of a database" * 100)
    (ws.checkpoints_dir / "step-000000004").mkdir()
    (ws.checkpoints_dir / "step-000000007").mkdir()
    state = read_state(ws)
    assert (state.status, state.step, state.last_checkpoint_step) == ("stopped", 7, 7)


def test_a_state_whose_runner_was_killed_reads_failed(ws):
    keeper = StateFile(ws, "r")
    keeper.apply(started())
    keeper.write_if_due()
    assert read_state(ws).status == "training"
    # The same pid, given to another program since.
    keeper.identity = "another boot:1"
    keeper.apply(RunPaused())
    keeper.write_if_due()
    state = read_state(ws)
    assert (state.status, state.pid) == ("failed", None)
    assert "resume with: gladius_train resume" in state.last_error


def test_a_killed_run_resumes_from_its_full_checkpoint_not_from_the_best_weights(ws):
    keeper = StateFile(ws, "r")
    for event in (
        started(),
        CheckpointSaved(step=40, path="step-000000040", bytes=1, seconds=0.1),
        CheckpointSaved(step=60, path="best-000000060", bytes=1, seconds=0.1, reason="best"),
        step_done(65),
    ):
        keeper.apply(event)
    keeper.identity = "another boot:1"
    keeper.write_if_due()
    state = read_state(ws)
    assert (state.last_checkpoint, state.last_checkpoint_step) == ("step-000000040", 40)
    assert "(from step 40; 25 steps are repeated)" in state.last_error


def test_a_stopped_run_of_an_older_file_is_stopped(ws):
    ws.create()
    ws.state_file.write_text('{"status": "paused", "run_id": "r", "pid": null}')
    assert read_state(ws).status == "stopped"


def test_the_state_is_written_once_a_second_and_at_once_when_its_status_changes(ws):
    keeper = StateFile(ws, "r")
    keeper.apply(started())
    keeper.write_if_due()
    keeper.apply(step_done(1))
    keeper.write_if_due()
    assert read_state(ws).step == 0
    keeper.apply(RunPaused(step=1))
    keeper.write_if_due()
    assert (read_state(ws).status, read_state(ws).step) == ("paused", 1)
    keeper.apply(step_done(2))
    time.sleep(1.05)
    keeper.write_if_due()
    assert read_state(ws).step == 2


def test_the_lock_names_its_owner_and_is_given_back(ws):
    with hold_lock(ws, "train", "socket") as owner:
        assert lock_owner(ws, "train") == owner
        assert (owner.pid, owner.socket) == (os.getpid(), "socket")
        message = rf"pid {os.getpid()}, since \d{{4}}-"
        with pytest.raises(LockedError, match=message) as caught, hold_lock(ws, "train"):
            pass
        assert caught.value.exit_code == ExitCode.LOCKED
        with hold_lock(ws, "download"):  # another kind of job
            pass
    assert lock_owner(ws, "train") is None
    with hold_lock(ws, "train"):
        pass


@pytest.mark.parametrize("content", [None, *DAMAGED], ids=range(6))
def test_a_lock_that_was_deleted_or_damaged_still_excludes(ws, content):
    with hold_lock(ws, "train") as owner:
        if content is None:
            lock_path(ws, "train").unlink()
        else:
            lock_path(ws, "train").write_bytes(content)
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"), hold_lock(ws, "train"):
            pass
        assert restore_lock(ws, owner) and not restore_lock(ws, owner)
        assert lock_owner(ws, "train") == owner
    with hold_lock(ws, "train"):
        pass


_HOLDER = """
import multiprocessing, os, subprocess, sys, time
from engine.run.lock import hold_lock
from engine.workspace import Workspace
if __name__ == "__main__":
    with hold_lock(Workspace.find(sys.argv[1]), "train"):
        program = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        spawned = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        spawned.start()
        forked = os.fork()
        if forked == 0:
            time.sleep(60)
            os._exit(0)
        print(program.pid, spawned.pid, forked, flush=True)
        time.sleep(60)
"""


def test_children_of_a_killed_runner_do_not_keep_its_lock(ws, tmp_path):
    script = tmp_path / "holder.py"
    script.write_text(_HOLDER)
    holder = subprocess.Popen(
        [sys.executable, str(script), str(ws.root)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert holder.stdout is not None
    program, spawned, forked = map(int, holder.stdout.readline().split())
    try:
        name = str(runtime_dir(ws.root) / "train.lock")
        held = {pid: name in open_files(pid) for pid in (holder.pid, program, spawned, forked)}
        assert held == {holder.pid: True, program: False, spawned: False, forked: True}
        with pytest.raises(LockedError), hold_lock(ws, "train"):
            pass
        holder.kill()
        holder.wait()
        with hold_lock(ws, "train") as owner:  # though the forked child still holds the file
            assert owner.pid == os.getpid()
    finally:
        for pid in (program, spawned, forked):
            os.kill(pid, signal.SIGKILL)


def open_files(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    return {os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()}


@pytest.mark.parametrize("content", [b"", b"not json", b'{"job":"train"}', *DAMAGED], ids=range(8))
def test_a_torn_lock_is_taken_over(ws, content):
    lock_path(ws, "train").write_bytes(content)
    with hold_lock(ws, "train") as owner:
        assert lock_owner(ws, "train") == owner


def test_a_stale_lock_is_taken_over_even_when_its_pid_was_given_to_another(ws):
    mine = identity_of(os.getpid())
    assert mine is not None
    for pid, identity in ((2**22 - 3, mine), (os.getpid(), "an earlier boot:123")):
        record = Owner(job="train", pid=pid, identity=identity, since=1.0)
        lock_path(ws, "train").write_bytes(msgspec.json.encode(record))
        assert lock_owner(ws, "train") is None
        with hold_lock(ws, "train"):
            pass


def test_a_zombie_holds_no_lock(ws):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert identity_of(child.pid) is not None
    child.kill()
    until(lambda: identity_of(child.pid) is None, 5)
    child.communicate()


def _race(root: str, gate, results) -> None:
    from engine.workspace import Workspace

    gate.wait()
    began = time.monotonic()
    try:
        with hold_lock(Workspace.find(root), "train"):
            results.put((os.getpid(), 0, 0.0))
            time.sleep(3)
    except LockedError as error:
        results.put((os.getpid(), str(error), time.monotonic() - began))


def test_of_twenty_that_race_one_wins_and_the_others_name_it_within_two_seconds(ws):
    lock_path(ws, "train").write_bytes(b"a dead runner's torn record")
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(20), context.Queue()
    racers = [context.Process(target=_race, args=(str(ws.root), gate, results)) for _ in range(20)]
    for racer in racers:
        racer.start()
    outcome = [results.get(timeout=20) for _ in racers]
    for racer in racers:
        racer.join()
    winners = [pid for pid, answer, _ in outcome if answer == 0]
    assert len(winners) == 1
    losers = [(answer, seconds) for _, answer, seconds in outcome if answer != 0]
    assert all(f"pid {winners[0]}" in answer and seconds < 2 for answer, seconds in losers)


def test_a_second_runner_on_the_root_ends_with_75(ws, host):
    first = host()
    first.wait_for(StepDone)
    second = host(ToyConfig(steps=5))
    assert second.end() == 75
    assert f"pid {first.pid}" in second.errors.read_text()
    first.wait_for(StepDone, 20)


def test_the_table_of_texts_is_part_of_the_state_until_the_next_attempt():
    reason = TextReason(outcome="left_out", reason="repeated", count=1, where="a.jsonl, line 2")
    run = TextsRead(texts=3, learnt=2, left_out=1, reasons=(reason,))
    streams = [TextsRead(expert="tiny", source="tiny/a", texts=n, learnt=n) for n in (4, 9)]
    view = RunView()
    view.take([run, *streams])
    assert [table.texts for table in state_of(view).texts] == [3, 9]
    stored = msgspec.json.decode(msgspec.json.encode(state_of(view)), type=RunState)
    assert view_of(stored).texts == view.texts
    assert [entry.level for entry in view.log] == ["warning", "info", "info"]
    view.take([RunStarted(run_id="r", job="train", attempt=2, pid=1)])
    assert state_of(view).texts == ()
