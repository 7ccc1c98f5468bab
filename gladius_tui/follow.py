"""Owns watching a job from a second terminal: the snapshot, and following its events."""

from __future__ import annotations

from engine.errors import MissingError
from engine.events import CapabilitiesScored, EvalDone, Job
from engine.experts.registry import expert_status, load_experts
from engine.run.control import attach
from engine.run.history import History
from engine.run.state import read_state
from engine.workspace import Workspace
from gladius_tui.headless import Printer
from gladius_tui.status import abilities_lines, snapshot_lines, status_lines

TAIL = 200
"""Events before now that following begins with."""
_HEADLINES = ("RunStarted", "PhaseStarted", "EvalDone")


def snapshot(ws: Workspace) -> list[str]:
    """The training run as the dashboard shows it, in lines."""
    state = read_state(ws)
    experts = {name: expert_status(ws, spec) for name, spec in load_experts(ws).items()}
    lines = status_lines(state, experts)
    history = History(ws.history_file)
    try:
        loss = history.series(state.run_id, "loss", 0, state.step + 1, columns=48)
        evaluation = history.last(state.run_id, "EvalDone")
        # The experts answer once, before the first step; the student at every evaluation.
        able = history.events(state.run_id, types=("CapabilitiesScored",), limit=32)
        able += history.tail(state.run_id, "CapabilitiesScored", 1)
    finally:
        history.close()
    lines += snapshot_lines(state, loss, evaluation if isinstance(evaluation, EvalDone) else None)
    return lines + abilities_lines([row for row in able if isinstance(row, CapabilitiesScored)])


def follow_job(ws: Workspace, job: Job, *, as_json: bool = False, quiet: bool = False) -> None:
    """Print the job's events: the newest TAIL of them, then those that come, until it ends.

    Without a running job, the last run's; MissingError when there was none.
    """
    printer = Printer(as_json=as_json, quiet=quiet)
    history = History(ws.history_file)
    try:
        try:
            attachment = attach(ws, job)
        except MissingError:
            record = history.last_run(job)
            if record is None:
                raise MissingError(
                    f"no {job} job runs in {ws.root} and none ran before; "
                    f"start it with: gladius_train {job}"
                ) from None
            _print_tail(history, record.run_id, record.last_seq, printer)
            return
        with attachment:
            _print_tail(history, attachment.run_id, attachment.seq, printer)
            for event in attachment.events():
                printer(event)
    finally:
        history.close()


def _print_tail(history: History, run_id: str, last_seq: int, printer: Printer) -> None:
    """Print the last TAIL events; of those before only what their lines refer to is taken in."""
    seq = max(0, last_seq - TAIL)
    for event in history.events(run_id, limit=seq, types=_HEADLINES, up_to=seq):
        printer.take_in(event)
    for event in history.events(run_id, after_seq=seq, limit=TAIL, up_to=last_seq):
        printer(event)
