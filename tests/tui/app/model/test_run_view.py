"""A RunView is the fold of a run's events: watched live, read from the history, or printed."""

from __future__ import annotations

import re

import msgspec
import pytest

from engine.events import (
    CapabilitiesScored,
    CapabilityScore,
    CheckpointSaved,
    EvalDone,
    ExpertScore,
    GuardTripped,
    Heartbeat,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    StopRequested,
)
from engine.run.state import state_of
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.app.model.job_info import JobInfo
from gladius_tui.app.model.job_status import idle_content, job_content
from gladius_tui.app.model.past_runs import fold_run, former_runs, read_metrics, read_run_view
from gladius_tui.app.widgets.panes.experts import experts_pane
from gladius_tui.app.widgets.panes.hardware import hardware_pane
from gladius_tui.app.widgets.panes.log import entry_lines
from gladius_tui.app.widgets.panes.run import run_pane, summary_line
from gladius_tui.headless import Renderer
from gladius_tui.status import status_lines
from tests.support.recording import recorded, write_run

EVENTS = recorded()
# What is counted of the events that were seen, or kept of more of them than a reading looks at.
COUNTS = {"changed", "checkpoints", "logged", "skipped", "log", "former_probes", "readings"}


def folded(events) -> RunView:
    run = RunView()
    run.take(events)
    return run


def facts(run: RunView) -> dict:
    return {name: value for name, value in vars(run).items() if name not in COUNTS}


@pytest.mark.parametrize("count", [3, 100, 134, 135, 200, 354, 355, 420, len(EVENTS)])
def test_a_run_read_from_the_history_equals_the_run_that_was_watched(tmp_path, count):
    ws = Workspace.find(tmp_path)
    events = [event for event in EVENTS[:count] if not isinstance(event, Heartbeat)]
    run_id = write_run(ws, events)
    watched = folded(events)
    read = read_run_view(ws, run_id)
    assert read is not None
    watched.seq = read.seq
    assert facts(read) == facts(watched)
    assert list(read.log)[-50:] == list(watched.log)[-50:]
    assert list(read.readings) == list(watched.readings)


def test_history_up_to_an_event_and_live_events_after_it_make_the_whole_run(tmp_path):
    from engine.run.history import History

    ws = Workspace.find(tmp_path)
    run_id = write_run(ws, EVENTS)
    history = History(ws.history_file)
    stored = history.events(run_id, limit=10_000)
    run = fold_run(history, run_id, up_to=300)
    history.close()
    run.take(stored)  # those up to 300 come twice
    whole = folded(stored)
    assert facts(run) == facts(whole)


def test_headless_and_app_show_the_same_for_one_stream():
    """Step, loss, speed, bits per byte, checkpoints, phase and status, at every event."""
    renderer, run = Renderer(), RunView()
    checkpoints = 0
    checked: dict[str, str] = {}
    for event in EVENTS:
        lines = renderer.lines(event)
        run.take([event])
        state = state_of(run)
        text = " ".join(line.strip() for line in lines)
        pane = run_pane(run, 60, event.time).plain
        log = "\n".join(entry_lines(e, 200)[0].plain for e in list(run.log)[-3:])
        match event:
            case StepDone():
                assert (run.step, run.phase) == (state.step, state.phase)
                assert run.last is not None and run.last.loss == state.loss
                if found := re.search(r"step ([\d,]+)  loss ([\d.]+)", text):
                    assert f"step {found[1]} of {run.max_steps:,}" in pane
                    assert f"{state.loss:.4f}" == found[2] and f"loss {state.loss:.3f}" in pane
                    speed = re.search(r"([\d,]+) tok/s", text)
                    assert speed and f"{speed[1]} tok/s" in pane
                    checked["step"] = found[1]
            case EvalDone():
                found = re.search(r"([\d.]+) bits/byte held out", text)
                assert found and f"held-out {found[1]}" in pane
                assert f"{found[1]} bits/byte held out" in log
                assert ("best so far" in text) == ("best so far" in log.splitlines()[-1])
                assert run.bits_per_byte == state.bits_per_byte
                for score in event.scores:
                    agreement = re.search(r"agreement (\d+%)", text)
                    row = experts_pane(run, 90, 5).plain
                    assert agreement and agreement[1] in row and f"{score.kl:.2f}" in row
                checked["eval"] = found[1]
            case CheckpointSaved():
                checkpoints += 1
                found = re.search(r"step ([\d,]+) saved \(([\d.]+ \w+)", text)
                assert found and f"checkpoint of step {found[1]} saved ({found[2]}" in log
                if event.reason != "best":
                    assert f"resumable {found[1]}" in pane
                    assert state.last_checkpoint == event.path
                assert run.checkpoint == event
                assert run.checkpoints == checkpoints
            case PhaseStarted():
                found = re.search(r"phase (\d/\d): (.+?) · step", text)
                assert found and f"phase {found[1]}  {found[2]}" in pane
                assert f"phase {found[1]}: {found[2]}" in log
            case RunEnded():
                assert text.strip().startswith("completed at step 220")
                assert "finished" in pane and run.status == state.status == "completed"
                checked["end"] = text
    assert checked["step"] == "220" and "eval" in checked and "end" in checked and checkpoints == 12


def step(number: int, **changes) -> StepDone:
    values = {
        **{"step": number, "phase": 1, "loss": 3.0, "kl": 2.0, "ce": 4.0, "lr": 1e-3},
        **{"grad_norm": 1.0, "tokens": 8, "tokens_seen": 8, "tokens_per_sec": 9.0},
        "step_seconds": 1.0,
    }
    return StepDone(**values | changes)


def test_capabilities_read_from_the_history_equal_those_watched(tmp_path):
    """The experts' rows come once, before hundreds of the student's."""

    def scored(who: str, at: int, right: int) -> CapabilitiesScored:
        score = CapabilityScore(capability="json", right=right, asked=4)
        return CapabilitiesScored(who=who, step=at, scores=(score,))

    rows = [scored("smollm2", 0, 3), *(scored("student", n, int(n == 7)) for n in range(1, 400))]
    began = next(event for event in EVENTS if isinstance(event, RunStarted))
    events = [began, *rows, step(400)]
    events = [msgspec.structs.replace(e, seq=n) for n, e in enumerate(events, start=1)]
    watched = RunView()
    watched.take(events)
    ws = Workspace.find(tmp_path)
    read = read_run_view(ws, write_run(ws, events))
    assert read is not None
    for run in (watched, read):
        assert run.capabilities["smollm2"].scores[0].right == 3
        assert run.capabilities["student"].step == 399
        assert run.best_capabilities == {"json": 0.25}


def test_the_status_follows_what_happens():
    run = folded(EVENTS[:200])
    seen = [run.status]
    for event in (
        RunPaused(step=66),
        RunResumed(step=66),
        GuardTripped(guard="stall", action="stalled"),
        GuardTripped(guard="stall", action="going on"),
        GuardTripped(guard="stall", action="stopped"),
        GuardTripped(guard="stall", action="going on"),
        RunEnded(status="stopped", step=66),
    ):
        run.take([event])
        seen.append(run.status)
    steady = "training"
    assert seen == [steady, "paused", steady, "stalled", steady, "stopped", steady, "ended"]
    assert not run.alive


def test_a_runner_that_is_gone_without_run_ended_was_killed():
    run = folded(EVENTS[:200])
    assert run.alive
    run.mark_killed()
    assert run.status == "failed" and "was killed" in run_pane(run, 60, 0.0).plain
    whole = folded(EVENTS)
    whole.mark_killed()
    assert whole.status == "completed"


def test_an_event_that_is_delivered_twice_counts_once():
    numbered = [msgspec.structs.replace(e, seq=n) for n, e in enumerate(EVENTS, 1)]
    run = folded(numbered)
    before = facts(run), run.logged, run.checkpoints
    run.take(numbered[-50:])
    assert (facts(run), run.logged, run.checkpoints) == before


def test_forgetting_is_measured_against_the_best_kl():
    run = RunView()
    for kl in (3.0, 1.0, 1.25):
        score = ExpertScore(expert="a", bits_per_byte=2.0, kl=kl, agreement=0.5, positions=9)
        run.take([EvalDone(bits_per_byte=2.0, scores=(score,))])
    row = run.experts["a"]
    assert row.best_kl == 1.0 and row.forgotten == pytest.approx(0.25)
    assert "25%" in experts_pane(run, 80, 4).plain
    no_target = ExpertScore(expert="a", bits_per_byte=2.0, kl=None, agreement=None, positions=9)
    run.take([EvalDone(bits_per_byte=2.0, scores=(no_target,))])
    assert row.forgotten is None


def test_a_restarted_run_is_preparing_not_ended():
    run = folded([*EVENTS[:250], RunEnded(status="stopped", step=90, time=100.0)])
    run.mark_restarted(since=50.0)
    assert run.status == "ended", "the runner has not exited yet"
    run.mark_restarted(since=200.0)
    assert run.status is None and "preparing" in run_pane(run, 60, 0.0).plain
    run.mark_killed()
    assert run.status == "failed"


def test_a_new_phase_begins_at_zero():
    run = folded([*EVENTS[:135], step(1, phase=1, phase_progress=0.9)])
    assert run.phase_progress == 0.9
    run.take([PhaseStarted(phase=2, phases=3, name="All experts")])
    assert run.phase_progress == 0.0
    assert run.experts["smollm2"].progress == 1.0


def test_a_resumed_run_continues_from_its_checkpoint():
    started = next(e for e in EVENTS if isinstance(e, RunStarted))
    run = folded([*EVENTS[:250], RunEnded(status="failed", step=90, reason="no power")])
    assert "no power" in run_pane(run, 60, 0.0).plain
    run.take([msgspec.structs.replace(started, seq=0, attempt=2, resumed_from=88)])
    assert (run.status, run.step, run.ended) == ("preparing", 88, None)
    run.take([step(89)])
    assert run.status == "training" and "step 89" in summary_line(run)


def saved(step: int, reason: str) -> CheckpointSaved:
    name = "best" if reason == "best" else "step"
    return CheckpointSaved(
        step=step, path=f"/c/{name}-{step:09d}", bytes=1, seconds=1.0, reason=reason
    )


def test_a_copy_of_the_best_weights_is_not_resumable():
    run = folded([*EVENTS[:100], saved(40, "interval"), saved(60, "best"), step(65)])
    assert "resumable 40" in run_pane(run, 60, 0.0).plain
    assert state_of(run).last_checkpoint_step == 40
    run.mark_killed()
    text = " ".join(run_pane(run, 60, 0.0).plain.split())
    assert "Press r to resume from step 40; 25 steps are repeated." in text
    without = folded([EVENTS[0], EVENTS[1], saved(60, "best"), step(61)])
    without.mark_killed()
    assert "starts again at step 0" in run_pane(without, 60, 0.0).plain


def test_a_resumed_run_shows_what_it_repeats():
    started = next(e for e in EVENTS if isinstance(e, RunStarted))
    run = folded([*EVENTS[:250], step(95)])
    run.take([msgspec.structs.replace(started, seq=0, attempt=2, resumed_from=90)])
    text = run_pane(run, 60, 0.0).plain
    assert "resuming from step 90; 5 steps are repeated" in text


def test_states_have_the_same_words_in_the_pane_in_status_and_in_the_top_bar():
    started = next(e for e in EVENTS if isinstance(e, RunStarted))
    started = msgspec.structs.replace(started, seq=0)
    died = GuardTripped(guard="worker", action="worker died at step 5", value=1.0)
    steps = [started, step(5)]
    for events, words in (
        ([started], "preparing"),
        (steps, "training"),
        ([*steps, RunPaused(step=5)], "paused"),
        ([*steps, StopRequested(step=5)], "stopping"),
        ([*steps, died], "restarting 1/3"),
        ([*steps, died, started], "preparing"),
        ([*steps, died, started, step(6)], "training"),
        ([*steps, StopRequested(finish=True)], "training"),
    ):
        run, info = folded(events), JobInfo(job="train", run_id="r", pid=1)
        for event in events:
            info = info.after(event)
        state = state_of(run, pid=7)
        assert words in run_pane(run, 60, 0.0).plain.splitlines()[0]
        assert status_lines(state, {})[0] == f"status       {words} (pid 7)"
        assert words in job_content(info, 60).plain
    ended = folded([*steps, saved(4, "stop"), RunEnded(status="stopped", step=5)])
    words = "stopped (resumable from step 4)"
    assert (
        words in run_pane(ended, 60, 0.0).plain and words in idle_content(state_of(ended), 60).plain
    )
    assert status_lines(state_of(ended), {})[0].endswith(words)


def test_the_share_of_a_finished_task_is_not_the_progress_of_the_run():
    info = JobInfo(job="train", run_id="r", pid=1)
    task = Progress(task="score:a", label="A scores", done=87, total=100)
    for event in (
        next(e for e in EVENTS if isinstance(e, RunStarted)),
        task,
        msgspec.structs.replace(task, finished=True),
        PhaseStarted(phase=1, phases=3, name="A"),
    ):
        info = info.after(event)
    assert "87%" not in job_content(info, 60).plain and "preparing" in job_content(info, 60).plain


def test_the_load_of_the_last_moment_is_not_shown_after_the_end():
    run = folded(EVENTS)
    text = hardware_pane(run, 40, 9).plain
    assert "%" not in text and "RAM" in text


def test_a_task_is_shown_while_it_is_in_progress():
    run = folded(EVENTS[:3])
    run.take([Progress(task="score:a", label="A scores", done=5, total=10, eta=3.0)])
    assert "A scores" in run_pane(run, 40, 0.0).plain
    run.take([Progress(task="score:a", label="A scores", done=10, total=10, finished=True)])
    assert "A scores" not in run_pane(run, 40, 0.0).plain


def test_runs_and_metrics_are_listed(tmp_path):
    ws = Workspace.find(tmp_path)
    first = write_run(ws, EVENTS[:200], "one")
    second = write_run(ws, EVENTS, "two")
    assert [run[:2] for run in former_runs(ws, second)] == [(first, "demo")]
    assert {"loss", "kl", "bits_per_byte", "kl/smollm2"} <= set(read_metrics(ws, second))
    run = read_run_view(ws)
    assert run is not None and run.run_id == second
    assert read_run_view(Workspace.find(tmp_path / "none")) is None
