"""Warnings about a run, folded from sequences of its events."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine.events import (
    AnyEvent,
    CheckpointSaved,
    DataReady,
    EvalDone,
    ExpertScore,
    ExpertShare,
    HardwareRead,
    HealthWarning,
    JobRequest,
    PhaseStarted,
    RunEnded,
    RunStarted,
    StepDone,
)
from engine.run.guardian import Guardian
from engine.run.history import History
from engine.run.record import Recorder
from engine.run.state import read_state
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.status import status_lines
from tests.support.recording import recorded

START = RunStarted(
    run_id="r", job="train", attempt=1, pid=1, target_params=1_000_000,
    experts=(ExpertShare(name="a", title="Expert A", share=1.0),),
)  # fmt: skip
PHASE = PhaseStarted(phase=2, phases=2, name="All experts")


def step(n: int, loss: float | None = 2.0, speed: float = 1000.0, **fields) -> StepDone:
    values = {"phase": 2, "kl": 1.0, "ce": 1.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10}
    values |= {"tokens_seen": 10 * n, "step_seconds": 0.1, **fields}
    return StepDone(step=n, loss=loss, tokens_per_sec=speed, **values)


def evaluation(n: int, bits: float, kl: float = 1.0) -> EvalDone:
    score = ExpertScore(expert="a", bits_per_byte=bits, kl=kl, agreement=0.5, positions=10)
    return EvalDone(step=n, bits_per_byte=bits, scores=(score,))


def ready(tokens: int) -> DataReady:
    return DataReady(
        expert="a", blocks=1, held_out_blocks=1, skipped_blocks=0, text_bytes=4 * tokens,
        teacher_tokens=tokens, student_tokens=tokens, positions=1, dropped_positions=0,
        aligned=1.0, inside=0.0, crossing=0.0, mean_weight=1.0, mean_residual=0.0,
    )  # fmt: skip


def disk(free: int) -> HardwareRead:
    return HardwareRead(cpu_percent=1.0, ram_used=1, ram_total=2, disk_free=free)


def guard(events: list[AnyEvent]) -> list[HealthWarning]:
    guardian = Guardian()
    return [warning for event in events for warning in guardian.take(event)]


def kinds(events: list[AnyEvent]) -> list[tuple[str, bool]]:
    return [(warning.kind, warning.active) for warning in guard(events)]


def with_evaluations(bits: list[float], losses: list[float], kl: list[float]) -> Iterator[AnyEvent]:
    """Ten steps of a loss before each evaluation."""
    for n, (value, loss, divergence) in enumerate(zip(bits, losses, kl, strict=True), 1):
        yield from (step(10 * (n - 1) + k, loss) for k in range(1, 11))
        yield evaluation(10 * n, value, divergence)


def falling(count: int) -> list[float]:
    return [2.0 * 0.9**n for n in range(count)]


def test_a_healthy_run_gets_no_warning():
    events = list(with_evaluations(falling(12), falling(12), falling(12)))
    assert guard([START, PHASE, ready(10_000), disk(10**12), *events]) == []


def test_the_recorded_run_gets_no_warning_of_its_numbers():
    """It has a few hundred real steps; its text is short, which is reported."""
    found = {warning.kind for warning in guard(recorded())}
    assert found <= {"epochs", "disk"}


def test_held_out_loss_that_rises_while_the_training_loss_falls():
    bits = [1.5, 1.3, 1.2, 1.21, 1.22, 1.25]
    events = [START, PHASE, *with_evaluations(bits, falling(6), falling(6))]
    (warning,) = guard(events)
    assert warning.kind == "overfitting" and warning.step == 60
    assert "since step 30 (1.200 → 1.250 bits/byte)" in warning.text
    assert "stop --finish" in warning.text
    # It ends when a later evaluation is as good again, and is given once.
    more = [*with_evaluations([*bits, 1.26, 1.19], falling(8), falling(8))]
    assert kinds([START, PHASE, *more]) == [("overfitting", True), ("overfitting", False)]


def test_no_warning_when_the_training_loss_rises_too():
    bits = [1.5, 1.3, 1.2, 1.21, 1.22, 1.25]
    rising = [2.0 + n for n in range(6)]
    assert guard([START, PHASE, *with_evaluations(bits, rising, falling(6))]) == []


def test_spikes_of_loss_and_skipped_steps():
    steps = [step(n) for n in range(1, 31)]
    steps += [step(31, 9.0), step(32), step(33, None, skipped=True), step(34), step(35, 20.0)]
    (warning,) = guard([START, PHASE, *steps])
    assert (warning.kind, warning.step) == ("spikes", 35)
    assert "3 spikes" in warning.text and "step 35" in warning.text
    later = [step(n) for n in range(36, 300)]
    assert kinds([START, PHASE, *steps, *later]) == [("spikes", True), ("spikes", False)]


def test_a_kl_that_no_longer_falls_is_reported_once_for_its_expert():
    kl = [2.0, 1.5, 1.0, 1.0, 0.999, 1.01, 1.0, 1.0]
    (warning,) = guard([START, PHASE, *with_evaluations(falling(8), falling(8), kl)])
    assert (warning.kind, warning.subject, warning.step) == ("plateau", "a", 70)
    assert "Expert A" in warning.text and "since step 30 (1.000 nats)" in warning.text


@pytest.mark.parametrize(
    ("kl", "expert"),
    [
        ([2.0, 1.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6], None),  # still falls
        ([0.02, 0.015, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01], None),  # nothing left to learn
        ([2.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "b"),  # not taught in this phase
    ],
)
def test_no_plateau(kl, expert):
    phase = PhaseStarted(phase=1, phases=2, name="x", expert=expert)
    assert guard([START, phase, *with_evaluations(falling(8), falling(8), kl)]) == []


def test_text_that_is_used_more_than_four_times():
    steps = [step(n) for n in range(1, 60)]  # ten tokens each
    (warning,) = guard([START, PHASE, ready(100), *steps])
    assert (warning.kind, warning.step) == ("epochs", 41)
    assert "100 tokens" in warning.text and "--data" in warning.text


def test_streamed_text_has_no_epochs():
    start = RunStarted(run_id="r", job="train", attempt=1, pid=1, streams_text=True)
    assert guard([start, PHASE, ready(100), *(step(n) for n in range(1, 60))]) == []


def test_a_disk_that_will_not_hold_the_next_checkpoint():
    saved = CheckpointSaved(step=5, path="x", bytes=50_000_000, seconds=1.0)
    best = CheckpointSaved(step=5, path="x", bytes=900_000_000, seconds=1.0, reason="best")
    # 12 bytes for each parameter, before there is a checkpoint
    assert kinds([START, disk(11_000_000)]) == [("disk", True)]
    assert kinds([START, disk(13_000_000)]) == []
    events = [START, saved, best, disk(51_000_000), disk(55_000_000), disk(61_000_000)]
    first, second = guard(events)
    assert first.active and "47.7 MiB" in first.text and "gladius_train clean" in first.text
    assert not second.active  # at 1.2 times the size, not at 1.1


def test_throughput_below_half_of_its_median():
    steps = [step(n) for n in range(1, 81)]
    slow = [step(n, speed=300.0) for n in range(81, 97)]
    (warning,) = guard([START, PHASE, *steps, *slow])
    assert warning.kind == "throughput" and "300 tokens/s" in warning.text
    assert kinds([START, PHASE, *steps, *(step(n, speed=600.0) for n in range(81, 120))]) == []
    fast = [step(n) for n in range(97, 130)]
    found = kinds([START, PHASE, *steps, *slow, *fast])
    assert found == [("throughput", True), ("throughput", False)]


def test_a_new_phase_begins_with_new_measurements():
    steps = [step(n) for n in range(1, 81)]
    slow = [step(n, speed=300.0) for n in range(81, 97)]
    other = PhaseStarted(phase=2, phases=2, name="All experts")
    assert guard([START, PHASE, *steps, other, *slow]) == []


def test_a_resumed_run_knows_the_warnings_that_were_given():
    steps = [step(n) for n in range(1, 60)]
    before: list[AnyEvent] = [START, PHASE, ready(100), *steps]
    warnings = guard(before)
    guardian = Guardian()
    guardian.replay([*before, *warnings])
    resumed = RunStarted(run_id="r", job="train", attempt=2, pid=1, resumed_from=59)
    assert [w for event in (resumed, step(60)) for w in guardian.take(event)] == []


def test_a_resumed_run_goes_on_with_the_evaluations_of_its_phase():
    bits = [1.5, 1.3, 1.2, 1.21, 1.22, 1.25]
    before = [START, PHASE, *with_evaluations(bits, falling(6), falling(6))]
    warnings = guard(before)
    guardian = Guardian()
    guardian.replay([*before, *warnings])
    resumed = RunStarted(run_id="r", job="train", attempt=2, pid=1, resumed_from=60)
    steps = [step(60 + n, 0.5) for n in range(1, 11)]
    same = [resumed, PHASE, *steps, evaluation(70, 1.26)]
    assert [w for event in same for w in guardian.take(event)] == []
    (ended,) = guardian.take(evaluation(80, 1.19))
    assert (ended.kind, ended.active) == ("overfitting", False)


def test_the_view_has_the_warnings_that_hold_and_all_in_its_log():
    view = RunView()
    warning = HealthWarning(seq=2, kind="disk", text="only 1 GiB is free: free some space")
    over = HealthWarning(seq=3, kind="disk", text=warning.text, active=False)
    view.take([START, warning])
    assert list(view.warnings) == [("disk", "")]
    assert [(e.level, e.text) for e in view.log][-1] == ("warning", warning.text)
    view.take([over])
    assert view.warnings == {} and "no longer: only 1 GiB" in view.log[-1].text


def test_a_warning_about_work_in_progress_ends_with_the_run():
    view = RunView()
    view.take([START, HealthWarning(kind="disk", text="x"), HealthWarning(kind="epochs", text="y")])
    view.take([RunEnded(status="stopped")])
    assert list(view.warnings) == [("epochs", "")]


def record(ws: Workspace, events: list[AnyEvent]) -> None:
    """Record events as a runner does, one commit after the other."""
    request = JobRequest(job="train", root=str(ws.root), run_id="r", attempt=1)
    recorder = Recorder(ws, History(ws.history_file), request, None)
    recorder.attempt = 1
    for event in events:
        recorder.add(event)
        recorder.flush()
    recorder.flush()
    recorder.close()


def test_the_recorder_adds_warnings_to_history_state_and_log(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    before = [START, PHASE, ready(100), *(step(n) for n in range(1, 50))]
    record(ws, [*before, RunEnded(status="stopped", step=49)])
    history = History(ws.history_file)
    (warning,) = history.tail("r", "HealthWarning", 10)
    history.close()
    assert (warning.kind, warning.step) == ("epochs", 41)
    assert [w.kind for w in read_state(ws).warnings] == ["epochs"]
    lines = status_lines(read_state(ws), {})
    assert any(line.startswith("warning      the text (100 tokens)") for line in lines)
    assert "add text with --data" in ws.log_file().read_text()
    # A resumed run does not repeat it.
    resumed = RunStarted(run_id="r", job="train", attempt=2, pid=1, resumed_from=49)
    record(ws, [resumed, PHASE, step(50), step(51)])
    history = History(ws.history_file)
    assert len(history.tail("r", "HealthWarning", 10)) == 1
    history.close()


def test_the_warnings_cost_little():
    guardian = Guardian()
    guardian.replay([START, PHASE])
    began = time.perf_counter()
    for n in range(1, 5001):
        guardian.take(step(n, speed=1000.0 + n % 7))
    assert time.perf_counter() - began < 1.0  # 0.2 ms a step, mostly to build the event
