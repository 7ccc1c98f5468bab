"""Events printed as lines of text or JSON."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from engine.events import (
    AnyEvent,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    ExpertScore,
    ExpertShare,
    GuardTripped,
    HardwareRead,
    Heartbeat,
    LogLine,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
    TextReason,
    TextsRead,
    decode_event,
    describe,
)
from gladius_tui.format import duration, size
from gladius_tui.headless import Printer, Renderer


def step(number: int, **changes) -> StepDone:
    values = {
        "step": number,
        "phase": 1,
        "loss": 4.5,
        "kl": 2.25,
        "ce": 5.0,
        "lr": 1.5e-3,
        "grad_norm": 1.0,
        "tokens": 2048,
        "tokens_seen": 2048 * number,
        "tokens_per_sec": 2941.4,
        "step_seconds": 0.7,
        "run_eta": 372.0,
    }
    return StepDone(**values | changes)


STARTED = RunStarted(
    run_id="train-1",
    job="train",
    attempt=1,
    pid=42,
    preset="nano",
    device="cpu",
    precision="bf16",
    config={"schedule": {"log_interval": 5}},
    target_params=6_500_000,
    max_steps=12,
    experts=(ExpertShare(name="smollm2", title="SmolLM2 135M", share=1.0),),
)


def text(*events: AnyEvent) -> str:
    """The lines of a new renderer for the events."""
    renderer = Renderer()
    return "\n".join(line for event in events for line in renderer.lines(event))


def test_a_step_is_printed_if_it_is_first_last_skipped_or_at_the_log_interval():
    renderer = Renderer()
    renderer.lines(STARTED)
    printed = [n for n in range(1, 13) if renderer.lines(step(n, skipped=n == 7))]
    assert printed == [1, 5, 7, 10, 12]


def test_the_line_of_a_step_shows_its_metrics():
    line = text(STARTED, step(5)).splitlines()[-1]
    assert line == (
        "  step 5  loss 4.5000  kl 2.2500  ce 5.0000  lr 1.5e-03  2,941 tok/s  42%  eta 6m12"
    )
    assert "loss –  " in text(step(5, loss=None))
    assert "step 5 skipped" in text(step(5, loss=None, skipped=True))


def test_a_run_is_introduced_and_its_phases_are_headings():
    shown = text(
        STARTED,
        PhaseStarted(
            phase=1, phases=3, name="SmolLM2 135M", expert="smollm2", first_step=1, last_step=7
        ),
    )
    for part in (
        "run train-1 started · preset nano · cpu bf16",
        "train · 6,500,000 parameters · 12 steps",
        "SmolLM2 135M 100%",
    ):
        assert part in shown
    assert "── phase 1/3: SmolLM2 135M · steps 1–7 ·" in shown


def test_an_evaluation_shows_the_change_and_each_expert():
    score = ExpertScore(
        expert="smollm2", bits_per_byte=2.6, kl=1.25, agreement=0.314, positions=100
    )
    unscored = ExpertScore(expert="own", bits_per_byte=3.0, kl=None, agreement=None, positions=10)
    shown = text(
        EvalDone(step=50, bits_per_byte=2.9),
        EvalDone(step=100, bits_per_byte=2.612, scores=(score, unscored), best=True),
    )
    assert "2.612 bits/byte held out, best so far (-0.288)" in shown
    assert "smollm2: 2.600 bits/byte  KL 1.250  agreement 31%" in shown
    assert "own: 3.000 bits/byte\n" in shown + "\n"


def test_progress_of_a_task_is_printed_at_most_every_five_seconds_and_at_its_end():
    renderer = Renderer()

    def printed(at: float, done: float, task: str = "a", finished: bool = False) -> bool:
        event = Progress(
            time=at, task=task, label="scoring", done=done, total=10, finished=finished
        )
        return bool(renderer.lines(event))

    assert [printed(0, 1), printed(2, 2), printed(3, 1, "b")] == [True, False, True]
    assert [printed(5.1, 3), printed(6, 10, finished=True)] == [True, True]
    assert [printed(at, 1, "still") for at in (0, 6, 29, 31)] == [True, False, False, True]


def test_progress_shows_amounts_in_their_unit():
    shown = text(
        Progress(task="d", label="qwen", done=1 << 20, total=4 << 20, unit="B", rate=2e6, eta=65),
        Progress(task="s", label="scoring", done=12000, total=80000, unit="tokens", rate=640.0),
    ).splitlines()
    assert shown[0] == "  qwen  1.0 MiB of 4.0 MiB  25%  1.9 MiB/s  eta 1m05"
    assert shown[1] == "  scoring  12,000 of 80,000 tokens  15%  640 tokens/s"


def test_a_sample_is_shown_without_control_characters_and_cut():
    shown = text(SampleDrawn(prompt="Say\nhi", text="ha\x1b[2J\x07 " + "lo " * 1000))
    assert "> Say hi" in shown and "\x1b" not in shown and "\x07" not in shown
    assert len(shown.splitlines()) == 6 and shown.endswith("…")
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_the_end_shows_the_last_step_and_the_path_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = text(
        EvalDone(step=0, bits_per_byte=8.0),
        EvalDone(step=12, bits_per_byte=2.25),
        RunEnded(
            step=12,
            status="completed",
            model_path=str(tmp_path / "models/gladius_primary"),
            tokens_seen=24000,
            seconds=301,
        ),
    )
    assert "completed at step 12 · 24,000 tokens · 5m01" in shown
    assert "held out: 8.000 → 2.250 bits/byte, steps 0 to 12" in shown
    assert "  model: models/gladius_primary" in shown


def test_every_event_for_users_has_a_line_and_the_others_none():
    printed: list[AnyEvent] = [
        DataReady(
            expert="q", blocks=1, held_out_blocks=1, skipped_blocks=2, text_bytes=1,
            teacher_tokens=1, student_tokens=1, positions=1, dropped_positions=0, aligned=0.9,
            inside=0.1, crossing=0.0, mean_weight=0.97, mean_residual=0.0,
        ),
        CheckpointSaved(step=9, path="/x", bytes=1 << 30, seconds=2.0, reason="asked"),
        CheckpointRejected(path="/x", reason="bit flip", moved_to="/y"),
        GuardTripped(guard="non_finite", action="step skipped", value=3.0),
        LogLine(text="hello"),
        LogLine(level="error", text="oh"),
        RunPaused(step=3),
        RunResumed(step=3),
    ]  # fmt: skip
    for event in printed:
        assert text(event).strip(), event
    silent: list[AnyEvent] = [
        HardwareRead(cpu_percent=1, ram_used=1, ram_total=2),
        Heartbeat(),
    ]
    for event in silent:
        assert text(event) == ""


def test_colour_is_used_only_if_enabled():
    failed = RunEnded(step=1, status="failed", exit_code=1, reason="no disk")
    assert "\x1b" not in text(failed)
    assert "\x1b[31m" in "".join(Renderer(colour=True).lines(failed))


def test_json_lines_are_the_encoded_events():
    stream = io.StringIO()
    printer = Printer(stream, as_json=True)
    for event in (STARTED, Heartbeat(), step(1)):
        printer(event)
    assert [decode_event(line) for line in stream.getvalue().splitlines()] == [STARTED, step(1)]


def test_quiet_prints_only_the_end():
    stream = io.StringIO()
    printer = Printer(stream, quiet=True)
    for event in (STARTED, step(1), RunEnded(step=1, status="stopped")):
        printer(event)
    assert stream.getvalue().split() == ["stopped", "at", "step", "1"]


def test_a_broken_pipe_stops_the_printing_and_not_the_program():
    program = (
        "import sys, os, signal; from engine.events import LogLine;"
        "from gladius_tui.headless import Printer; printer = Printer();\n"
        "for n in range(2000): printer(LogLine(text='x' * 100))\n"
        "print('done', file=sys.stderr)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "done\n")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, "–"), (-5, "0s"), (44.6, "45s"), (372, "6m12"), (3600, "1h00"), (187_200, "2d04h")],
)
def test_durations_are_short(seconds, expected):
    assert duration(seconds) == expected


def test_sizes_are_binary():
    assert [size(0), size(1536), size(3 << 30)] == ["0 B", "1.5 KiB", "3.0 GiB"]


def test_the_answer_to_a_command_names_the_step():
    events = (
        RunPaused(step=1200),
        RunResumed(step=1200),
        CheckpointSaved(step=1200, path="/x", bytes=1, seconds=1.0),
        RunEnded(step=1200, status="stopped"),
        RunEnded(step=1200, status="completed"),
    )
    assert all("1,200" in str(describe(event)) for event in events)


def test_the_table_of_texts_has_a_line_for_each_reason():
    reasons = (
        TextReason(outcome="left_out", reason="repeated", count=590, where="a.jsonl, line 7"),
        TextReason(
            outcome="cut", reason="unknown role", count=4, where="a.jsonl, line 9", detail="turn 2"
        ),
        TextReason(outcome="file", reason="empty file", count=1, where="b.txt"),
    )
    table = TextsRead(texts=1600, learnt=1010, held_out=5, cut=4, left_out=590, reasons=reasons)
    assert Renderer().lines(table) == [
        "  texts: 1,600 read, 1,010 learnt (5 of them held out), 4 cut, 590 left out",
        "    repeated 590 (first: a.jsonl, line 7)",
        "    cut, unknown role 4 (first: a.jsonl, line 9): turn 2",
        "    file not read, empty file 1 (first: b.txt)",
    ]
