"""The runner with a real worker: what survives what, and with which exit code it ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import time

import pytest

from engine.events import CheckpointSaved, GuardTripped, LogLine, RunEnded, RunStarted, StepDone
from engine.run.history import History
from engine.run.lock import lock_owner
from engine.run.state import read_state
from tests.support.hosting import status
from tests.support.toy_job import ToyConfig
from tests.support.waiting import gone, until


def guards(host, name: str) -> list[str]:
    return [e.action for e in host.events() if isinstance(e, GuardTripped) and e.guard == name]


def test_a_job_runs_to_its_end_and_everything_is_recorded(ws, host, history):
    running = host(ToyConfig(steps=40, seconds=0.001))
    assert running.end() == 0
    printed = running.events()
    assert [e.seq for e in printed] == list(range(1, len(printed) + 1))
    assert [e.step for e in printed if isinstance(e, StepDone)] == list(range(1, 41))
    assert isinstance(printed[-1], RunEnded) and printed[-1].status == "completed"
    record = history.last_run("train")
    assert record is not None and record.attempts == 1
    assert history.events(record.run_id) == printed
    state = read_state(ws)
    assert (state.status, state.step, state.loss, state.pid) == ("completed", 40, 1040.0, None)
    assert state.experts_completed == ("alpha", "beta")
    assert (
        "checkpoint of step 40 saved (1 B in under 1s, end of training)"
        in ws.log_file().read_text()
    )
    assert lock_owner(ws, "train") is None


def test_a_killed_worker_is_restarted_from_its_checkpoint(ws, host, history):
    running = host(ToyConfig(steps=60, faults={1: (25, "kill")}))
    assert running.end() == 0
    action = guards(running, "worker")[0]
    step = next(e.step for e in running.events() if isinstance(e, GuardTripped))
    assert action == f"worker died at step {step} (killed by signal 9), restarting 1 of 3"
    first, second = (e for e in running.events() if isinstance(e, RunStarted))
    assert (first.attempt, first.resumed_from) == (1, None)
    assert (second.attempt, second.resumed_from) == (2, 20)
    # In the series, what the second attempt did stands for what the first lost.
    columns = history.series(second.run_id, "loss", 0, 61, 61)
    assert [c.first for c in columns[1:21]] == [1000 + n for n in range(1, 21)]
    assert [c.first for c in columns[21:]] == [2000 + n for n in range(21, 61)]
    assert [c.count for c in columns] == [0] + [1] * 60


def test_a_worker_killed_in_the_middle_of_a_message_blocks_nothing(host):
    running = host(ToyConfig(steps=30, faults={1: (15, "torn")}))
    assert running.end() == 0
    assert len(guards(running, "worker")) == 1


def test_after_three_restarts_the_run_fails_with_a_remedy(ws, host):
    faults = dict.fromkeys(range(1, 9), (12, "kill"))
    running = host(ToyConfig(faults=faults))
    assert running.end() == 1
    assert len(guards(running, "worker")) == 3
    ended = running.events()[-1]
    assert isinstance(ended, RunEnded) and ended.status == "failed"
    assert "died 4 times" in ended.reason and "gladius_train resume" in ended.reason
    state = read_state(ws)
    assert state.status == "failed" and state.last_error == ended.reason


@pytest.mark.parametrize("fault", ["kill", "one", "raise"])
def test_a_worker_that_dies_twice_before_a_step_is_not_tried_again(host, fault):
    running = host(ToyConfig(faults=dict.fromkeys(range(1, 9), (1, fault))))
    assert running.end() == 1
    assert len(guards(running, "worker")) == 1
    assert "died 2 times" in running.events()[-1].reason


def test_an_unexpected_exception_is_reported_in_one_line_and_its_traceback_logged(ws, host):
    running = host(ToyConfig(steps=30, faults={1: (15, "raise")}))
    assert running.end() == 0
    assert "(ValueError: the toy is broken)" in guards(running, "worker")[0]
    assert "Traceback (most recent call last)" in ws.log_file().read_text()


def test_an_expected_failure_ends_the_run_with_its_own_exit_code(ws, host):
    running = host(ToyConfig(faults={1: (0, "missing")}))
    assert running.end() == 3
    ended = running.events()[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.status, ended.reason) == ("failed", "no toy expert is ready; download one")
    assert guards(running, "worker") == []


def test_a_hung_worker_leaves_its_stacks_and_is_restarted(ws, host):
    config = ToyConfig(steps=30, faults={1: (15, "hang")})
    running = host(config, GLADIUS_HANG_SECONDS="1")
    assert running.end() == 0
    assert "(it hung)" in guards(running, "worker")[0]
    assert "fail_if_due" in ws.log_file().read_text()


def test_a_worker_that_holds_the_interpreter_is_ended_by_the_runner(ws, host):
    config = ToyConfig(steps=30, faults={1: (15, "hold")})
    running = host(config, GLADIUS_HANG_SECONDS="1", GLADIUS_STALL_SECONDS="1")
    assert running.end() == 0
    assert f"(killed by signal {int(signal.SIGABRT)})" in guards(running, "worker")[0]
    assert "fail_if_due" in ws.log_file().read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint(ws, host, number, code):
    running = host()
    running.wait_for(StepDone, 5)
    os.kill(running.pid, number)
    assert running.end() == code
    saved = [e for e in running.events() if isinstance(e, CheckpointSaved)][-1]
    ended = running.events()[-1]
    assert isinstance(ended, RunEnded) and ended.status == "stopped"
    assert saved.reason == "stop" and saved.step == ended.step
    assert (status(ws), read_state(ws).pid) == ("stopped", None)
    again = host(ToyConfig(steps=ended.step + 5), "--resume")
    assert again.end() == 0
    started = again.events()[0]
    assert isinstance(started, RunStarted)
    assert (started.attempt, started.resumed_from) == (2, ended.step)


def test_a_signal_to_the_whole_group_reaches_the_worker_by_its_runner_only(host):
    running = host()
    running.wait_for(StepDone, 5)
    os.killpg(running.pid, signal.SIGINT)
    assert running.end() == 130
    assert running.events()[-1].step == running.wait_for(RunEnded).step
    assert guards(running, "worker") == []


def test_a_signal_while_the_worker_starts_is_not_lost(host):
    running = host()
    until(lambda: running.ws.state_file.exists())
    os.killpg(running.pid, signal.SIGTERM)
    assert running.end() == 143
    assert guards(running, "worker") == []


def test_a_second_signal_ends_at_once(ws, host):
    running = host(ToyConfig(faults={1: (5, "deaf")}))
    running.wait_for(StepDone, 8)
    worker = running.worker_pid()
    os.kill(running.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert running.process.poll() is None
    os.kill(running.pid, signal.SIGTERM)
    assert running.end(5) == 143
    assert gone(worker)
    assert status(ws) == "stopped"


def test_sighup_is_ignored(host):
    running = host()
    running.wait_for(StepDone, 3)
    os.killpg(running.pid, signal.SIGHUP)
    running.wait_for(StepDone, 25)


def test_a_worker_ends_itself_when_its_runner_is_killed(ws, host):
    running = host()
    running.wait_for(StepDone, 3)
    worker = running.worker_pid()
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: gone(worker), 3)
    running.end()
    state = read_state(ws)
    assert state.status == "failed" and "gladius_train resume" in state.last_error
    # The dead runner's lock and socket are in nobody's way.
    again = host(ToyConfig(steps=5), "--resume")
    assert again.end() == 0


def test_a_worker_with_a_full_queue_ends_itself_too(host):
    running = host(ToyConfig(seconds=0.0))
    running.wait_for(StepDone, 3)
    worker = running.worker_pid()
    os.kill(running.pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGKILL)
    until(lambda: gone(worker), 3)


def test_a_suspended_worker_is_reported_once_and_recovers(host):
    running = host(GLADIUS_HANG_SECONDS="1", GLADIUS_STALL_SECONDS="1")
    running.wait_for(StepDone, 3)
    worker = running.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    until(lambda: guards(running, "stall") == ["stopped"], 3)
    time.sleep(2.5)  # longer than a stall and a hang: it is neither
    assert guards(running, "stall") == ["stopped"]
    os.kill(worker, signal.SIGCONT)
    until(lambda: guards(running, "stall") == ["stopped", "going on"], 3)
    running.wait_for(StepDone, 40)
    assert guards(running, "worker") == []


def test_a_silent_worker_is_reported_as_stalled(host):
    running = host(ToyConfig(faults={1: (5, "hang")}), GLADIUS_STALL_SECONDS="1")
    until(lambda: guards(running, "stall") == ["stalled"], 10)


def test_a_damaged_history_is_moved_aside_and_the_job_goes_on(ws, host):
    ws.history_file.write_bytes(b"this is no database" * 1000)
    running = host(ToyConfig(steps=20))
    assert running.end() == 0
    assert list(ws.logs_dir.glob("history.sqlite.damaged-*"))
    history = History(ws.history_file)
    record = history.last_run("train")
    assert record is not None
    assert history.events(record.run_id, types=["StepDone"])[-1].step == 20


def test_a_locked_history_does_not_stop_the_job(ws, host, history):
    running = host(ToyConfig(steps=150))
    running.wait_for(StepDone, 3)
    other = sqlite3.connect(ws.history_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    running.wait_for(StepDone, 60)
    other.execute("ROLLBACK")
    other.close()
    assert running.end() == 0
    record = history.last_run("train")
    assert record is not None
    # All that waited was written afterwards.
    seqs = [e.seq for e in history.events(record.run_id)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert len(seqs) == len(running.events())


def test_the_state_tells_the_running_process_and_its_hardware(ws, host):
    running = host()
    until(lambda: read_state(ws).hardware is not None)
    state = read_state(ws)
    assert (state.status, state.pid, state.current_expert) == ("training", running.pid, "alpha")
    assert state.hardware is not None and state.hardware.ram_total > 0
    assert state.hardware.worker_rss > 0


def test_what_a_worker_prints_goes_to_the_log_and_not_to_the_terminal(ws, host):
    running = host(ToyConfig(steps=20, print_every=5), "--quiet")
    assert running.end() == 0
    assert running.output.read_bytes() == b""
    assert running.errors.read_bytes() == b""
    assert "the toy says 20" in ws.log_file().read_text()


def test_a_long_load_is_neither_a_stall_nor_a_hang(host):
    config = ToyConfig(steps=30, faults={1: (15, "load")})
    running = host(config, GLADIUS_HANG_SECONDS="2", GLADIUS_STALL_SECONDS="2")
    assert running.end() == 0
    assert guards(running, "stall") == guards(running, "worker") == []


def test_files_that_cannot_be_written_stop_nothing(ws, host):
    for path in (ws.state_file, ws.history_file, ws.log_file()):
        path.mkdir()
    running = host(ToyConfig(steps=30))
    assert running.end() == 0
    warnings = sorted(e.text for e in running.events() if isinstance(e, LogLine))
    assert len(warnings) == 2  # each once
    assert "training_state.json can't be written" in warnings[0]
    assert "the history can't be written" in warnings[1]
    assert [e.step for e in running.events() if isinstance(e, StepDone)] == list(range(1, 31))
