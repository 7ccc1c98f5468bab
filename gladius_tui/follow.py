"""Watch a job from a second terminal: print a snapshot of the run, or follow its events."""

from __future__ import annotations

from engine.errors import MissingError
from engine.events import Job
from engine.experts.registry import expert_status, load_experts
from engine.run.control import attach
from engine.run.history import History
from engine.run.state import read_state
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.headless import Printer
from gladius_tui.status import capability_lines, snapshot_lines, status_lines

TAIL = 200
"""Past events to print before the new ones."""
_LOSS_COLUMNS = 48
_REFERENCED_EVENTS = ("RunStarted", "PhaseStarted", "EvalDone")
"""Events that the lines of later events refer to."""


def snapshot(ws: Workspace) -> list[str]:
    """The state of the training run with its loss curve and scores, as lines."""
    state = read_state(ws)
    experts = {name: expert_status(ws, spec) for name, spec in load_experts(ws).items()}
    lines = status_lines(state, experts)
    history = History(ws.history_file)
    try:
        loss = history.series(state.run_id, "loss", 0, state.step + 1, columns=_LOSS_COLUMNS)
        # Experts answer once, before the first step; the student at every evaluation.
        scores = history.events(state.run_id, types=("CapabilitiesScored",), limit=32)
        scores += history.tail(state.run_id, "CapabilitiesScored", 1)
        scores += history.tail(state.run_id, "EvalDone", 1)
    finally:
        history.close()
    view = RunView()
    view.take(sorted(scores, key=lambda event: event.seq))
    return [*lines, *snapshot_lines(state, loss, view), *capability_lines(view)]


def follow_job(ws: Workspace, job: Job, *, as_json: bool = False, quiet: bool = False) -> None:
    """Print the job's last TAIL events, then new ones until it ends.

    Prints the last run's events if the job is not running.

    Raises:
        MissingError: the job is not running and has never run.
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
                    f"no {job} job is running in {ws.root}, and none has run before; "
                    f"start one with: gladius_train {job}"
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
    """Print the last TAIL events; of earlier ones read only what later lines refer to."""
    seq = max(0, last_seq - TAIL)
    for event in history.events(run_id, limit=seq, types=_REFERENCED_EVENTS, up_to=seq):
        printer.remember(event)
    for event in history.events(run_id, after_seq=seq, limit=TAIL, up_to=last_seq):
        printer(event)
