"""The list of a root's runs: names, notes, states, differences, and their metrics as a table."""

from __future__ import annotations

import csv
import importlib.util
import time

import msgspec
import pytest

from engine.errors import MissingError, UsageError
from engine.events import EvalDone, RunEnded, RunPaused, RunStarted, StepDone
from engine.run.history import History
from engine.run.lock import hold_lock
from engine.run.metrics_table import export_metrics, merged_rows
from engine.run.runs import config_difference, find_run, label_run, list_runs, run_config
from engine.workspace import Workspace
from gladius_tui.cli import main


def step(n: int, loss: float = 2.0) -> StepDone:
    return StepDone(
        step=n, phase=1, loss=loss, kl=None, ce=None, lr=1e-3, grad_norm=1.0, tokens=8,
        tokens_seen=8 * n, tokens_per_sec=100.0, step_seconds=0.1,
    )  # fmt: skip


def write(ws: Workspace, run_id: str, *events, config: dict | None = None) -> None:
    """A run in the history, as its runner writes it."""
    ws.create()
    config = {"preset": "nano", "optimizer": {"lr": 0.001}} | (config or {})
    history = History(ws.history_file)
    history.begin_run(run_id, "train", msgspec.json.encode(config))
    attempt = history.begin_attempt(run_id)
    started = RunStarted(run_id=run_id, job="train", attempt=attempt, pid=1, config=config)
    history.append(run_id, attempt, [started, *events])
    history.close()


@pytest.fixture
def ws(tmp_path) -> Workspace:
    ws = Workspace.find(tmp_path)
    finished = RunEnded(step=2, status="completed")
    write(ws, "train-a", step(1), EvalDone(step=1, bits_per_byte=1.5), step(2),
          EvalDone(step=2, bits_per_byte=1.25), finished)  # fmt: skip
    write(ws, "train-b", step(1, 3.0), config={"optimizer": {"lr": 0.01}, "seed": 1})
    return ws


def test_the_list_has_steps_best_score_and_state(ws):
    newest, oldest = list_runs(ws)
    assert (newest.run_id, newest.status, newest.steps) == ("train-b", "failed", 1)
    assert (oldest.steps, oldest.best_bits, oldest.status) == (2, 1.25, "finished")
    assert oldest.preset == "nano" and abs(oldest.started - time.time()) < 60


def test_only_the_newest_run_is_running_while_the_lock_is_held(ws):
    with hold_lock(ws, "train", ""):
        assert [run.status for run in list_runs(ws)] == ["training", "finished"]
        write(ws, "train-c", step(1), RunPaused(step=1))
        assert [run.status for run in list_runs(ws)][:2] == ["paused", "failed"]


def test_a_root_without_a_history_has_no_runs(tmp_path):
    assert list_runs(Workspace.find(tmp_path)) == []


def test_a_run_is_found_by_name_id_or_beginning(ws):
    label_run(ws, "train-a", name="first try", note="with a low rate")
    assert find_run(ws, "first try").run_id == find_run(ws, "train-a").run_id == "train-a"
    assert find_run(ws, "train-b").title == "train-b"
    with pytest.raises(UsageError, match="beginning of 2 runs"):
        find_run(ws, "train-")
    with pytest.raises(MissingError, match="gladius_train runs"):
        find_run(ws, "nowhere")


def test_two_runs_cannot_have_one_name(ws):
    label_run(ws, "train-a", name="one")
    label_run(ws, "train-a", name="one")  # its own name
    for name in ("one", "train-a", "", "x" * 99, "two\nlines"):
        with pytest.raises(UsageError):
            label_run(ws, "train-b", name=name)
    label_run(ws, "train-a", note="")
    assert find_run(ws, "one").note == ""


def test_names_survive_a_runner_that_writes(ws):
    label_run(ws, "train-b", name="mine")
    history = History(ws.history_file)
    history.begin_run("train-b", "train", b"{}")
    history.append("train-b", 1, [step(2)])
    label_run(ws, "train-b", note="while it runs")
    history.append("train-b", 1, [step(3)])
    history.close()
    run = find_run(ws, "mine")
    assert (run.steps, run.note) == (3, "while it runs")


def test_the_difference_of_two_configs_names_the_fields(ws):
    difference = config_difference(run_config(ws, "train-a"), run_config(ws, "train-b"))
    assert difference == [("optimizer.lr", 0.001, 0.01), ("seed", None, 1)]


def test_every_metric_is_exported_as_csv(ws, tmp_path):
    path = tmp_path / "run.csv"
    assert export_metrics(ws, "train-a", path) == 2
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert [float(row["bits_per_byte"]) for row in rows] == [1.5, 1.25]
    assert rows[0]["kl"] == "" and float(rows[0]["lr"]) == 1e-3
    with pytest.raises(UsageError, match="exists"):
        export_metrics(ws, "train-a", path)
    export_metrics(ws, "train-a", path, force=True)
    with pytest.raises(UsageError, match=r"\.csv or \.parquet"):
        export_metrics(ws, "train-a", tmp_path / "run.txt")
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
def test_parquet_has_the_same_values(ws, tmp_path):
    import pyarrow.parquet

    export_metrics(ws, "train-a", tmp_path / "run.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet").to_pydict()
    assert table["step"] == [1, 2] and table["bits_per_byte"] == [1.5, 1.25]
    assert table["kl"] == [None, None]


def test_parquet_without_pyarrow_is_one_line_with_the_remedy(ws, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install pyarrow"):
        export_metrics(ws, "train-a", tmp_path / "run.parquet")


def test_rows_are_merged_by_step():
    rows = list(merged_rows([iter([(1, 1.0), (3, 3.0)]), iter([(2, 0.5), (3, None)])]))
    assert rows == [(1, [1.0, None]), (2, [None, 0.5]), (3, [3.0, None])]


def test_the_commands_name_note_compare_and_export(ws, tmp_path, capsys):
    def run(*words: str) -> str:
        assert main(["--root", str(ws.root), "--no-ui", *words]) == 0
        return capsys.readouterr().out

    assert "train-a" in run("runs") and "1.250" in run("runs")
    run("runs", "rename", "train-a", "base line")
    run("runs", "note", "base line", "the first")
    assert "base line" in run("runs") and "the first" in run("runs")
    assert msgspec.json.decode(run("--json", "runs"))[1]["name"] == "base line"
    assert "optimizer.lr  0.001" in run("runs", "diff", "base line", "train-b")
    assert "2 steps" in run("runs", "export", "base line", str(tmp_path / "x.csv"))
    assert main(["--root", str(ws.root), "runs", "note", "nobody", "x"]) == 3


def test_500_runs_are_listed_within_half_a_second(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    history = History(ws.history_file)
    for n in range(500):
        run_id = f"train-{n:03}"
        history.begin_run(run_id, "train", b'{"preset": "nano"}')
        started = RunStarted(run_id=run_id, job="train", attempt=1, pid=1)
        events = [step(k) for k in range(1, 5)]
        ended = RunEnded(status="stopped", step=4)
        history.append(run_id, 1, [started, *events, EvalDone(step=4, bits_per_byte=1.0), ended])
    history.close()
    began = time.perf_counter()
    assert len(list_runs(ws)) == 500
    assert time.perf_counter() - began < 0.5
