"""Launching a command in a new session, and reporting how it ended."""

from __future__ import annotations

import os
import queue

import pytest

from engine.workspace import Workspace
from gladius_tui.launch import Ended, job_of, launch


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return Workspace.find(tmp_path)


def ended(ws: Workspace, *argv: str) -> Ended:
    answers: queue.Queue[Ended] = queue.Queue()
    pid = launch(ws, argv, answers.put)
    assert os.getsid(pid) == pid
    return answers.get(timeout=60)


def test_a_command_that_succeeds_leaves_no_file(ws):
    assert ended(ws, "status") == Ended(("status",), 0, "")
    assert list(ws.logs_dir.glob("launch_*")) == []


def test_the_error_message_of_the_command_is_returned(ws):
    answer = ended(ws, "train", "--preset", "nan")
    assert answer.exit_code == 2
    assert answer.error == "unknown preset 'nan'; did you mean 'nano'?"


def test_all_lines_of_an_error_are_returned(ws):
    answer = ended(ws, "train", "--set", "loss.alpha=7", "--set", "optimizer.lr=no")
    assert answer.exit_code == 2
    assert answer.error.startswith("config: 2 problems\n")
    assert "loss.alpha" in answer.error and "optimizer.lr" in answer.error


@pytest.mark.parametrize(
    ("argv", "job"), [(["resume"], "train"), (["train"], "train"), (["export"], "export")]
)
def test_which_job_a_command_runs(argv, job):
    assert job_of(argv) == job
