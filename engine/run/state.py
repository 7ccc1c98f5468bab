"""training_state.json: a summary of the training run, derived from its events.

The history holds the events themselves.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

import msgspec

from engine.checkpoint.layout import list_checkpoints
from engine.events import (
    AnyEvent,
    CheckpointSaved,
    HardwareRead,
    HealthWarning,
    PhasePlan,
    TextsRead,
    describe,
)
from engine.run.job import JOBS
from engine.run.lock import identity_of, is_alive, lock_owner
from engine.run.view import RunView, resume_point, state_words
from engine.small_files import Damaged, read_json
from engine.workspace import Workspace, write_json

Status = Literal["not_started", "training", "paused", "stopped", "completed", "failed"]


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of the training run."""

    status: Status = "not_started"
    activity: str = ""
    """The state in words, such as `preparing` or `restarting 1/3`; empty in older files."""
    work: str = ""
    """The task in progress with its count and rate, while the run takes no steps."""
    run_id: str = ""
    preset: str = ""
    phase: int = 0
    phases: int = 0
    """Number of the last phase (phase n/N)."""
    phase_name: str = ""
    current_expert: str | None = None
    experts_completed: tuple[str, ...] = ()
    plan: tuple[PhasePlan, ...] = ()
    step: int = 0
    tokens_seen: int = 0
    loss: float | None = None
    bits_per_byte: float | None = None
    """Of the last evaluation on held-out text."""
    current_params: int = 0
    target_params: int = 0
    training_hours: float = 0.0
    """Unpaused worker time of the run."""
    started_at: float | None = None
    """Unix time at which the run began."""
    updated_at: float | None = None
    last_checkpoint: str | None = None
    """Path of the newest full checkpoint: the one that a resume starts from."""
    last_checkpoint_step: int | None = None
    last_checkpoint_at: float | None = None
    hardware: HardwareRead | None = None
    pid: int | None = None
    """Of the runner; None when nothing runs."""
    identity: str = ""
    """Distinguishes the process from a later one with the same pid, see `identity_of`."""
    last_error: str = ""
    warnings: tuple[HealthWarning, ...] = ()
    """The warnings that hold, each with what to do."""
    texts: tuple[TextsRead, ...] = ()
    """What became of the texts: of the run, then where an expert's or a stream's differ."""


def state_of(view: RunView, pid: int | None = None, identity: str = "") -> RunState:
    """The state of a run from its view; `pid` and `identity` are its runner's."""
    ended = view.ended
    completed = ended is not None and ended.status == "completed"
    saved = view.resumable
    return RunState(
        status=_status(view),
        activity=state_words(view) if view.status is not None else "",
        work=next((describe(task) or "" for task in view.work.values()), ""),
        run_id=view.run_id,
        preset=view.preset,
        phase=view.phase or 0,
        phases=view.phases,
        phase_name=view.phase_name,
        current_expert=None if completed else view.expert,
        experts_completed=tuple(
            phase.expert
            for phase in view.plan
            if phase.expert and (completed or phase.index < (view.phase or 0))
        ),
        plan=view.plan,
        step=view.step or 0,
        tokens_seen=view.tokens_seen,
        loss=view.loss,
        bits_per_byte=view.bits_per_byte,
        current_params=view.current_params,
        target_params=view.target_params,
        training_hours=view.training_seconds / 3600,
        started_at=view.started,
        last_checkpoint=saved.path if saved else None,
        last_checkpoint_step=saved.step if saved else None,
        last_checkpoint_at=saved.time if saved else None,
        hardware=view.hardware,
        pid=pid if ended is None else None,
        identity=identity if ended is None else "",
        last_error=ended.reason if ended is not None and ended.status == "failed" else view.trouble,
        warnings=tuple(view.warnings.values()),
        texts=tuple(view.texts.values()),
    )


def _status(view: RunView) -> Status:
    if view.ended is not None:
        ends: dict[str, Status] = {"stopped": "stopped", "completed": "completed"}
        return ends.get(view.ended.status, "failed")
    if view.status is None:
        return "not_started"
    return "paused" if view.paused else "training"


def view_of(state: RunState) -> RunView:
    """A view of the run that continues from a stored state."""
    view = RunView(
        run_id=state.run_id,
        preset=state.preset,
        started=state.started_at,
        plan=state.plan,
        phase=state.phase,
        phases=state.phases,
        phase_name=state.phase_name,
        expert=state.current_expert,
        current_params=state.current_params,
        target_params=state.target_params,
        step=state.step,
        tokens_seen=state.tokens_seen,
        loss=state.loss,
        training_seconds=state.training_hours * 3600,
        bits_per_byte=state.bits_per_byte,
        texts={(table.expert, table.source): table for table in state.texts},
    )
    if state.last_checkpoint is not None:
        view.checkpoint = view.resumable = CheckpointSaved(
            step=state.last_checkpoint_step or 0,
            time=state.last_checkpoint_at or 0.0,
            path=state.last_checkpoint,
            bytes=0,
            seconds=0.0,
        )
    view.warnings = {(w.kind, w.subject): w for w in state.warnings}
    if state.hardware is not None:
        view.readings.append(state.hardware)
    return view


def read_state(ws: Workspace) -> RunState:
    """The stored state; `not_started` where there is none.

    A missing or damaged file is made up for by the history and the checkpoints. When the runner
    that the state names no longer runs, the status is `failed` and `last_error` gives the remedy.
    """
    try:
        state = read_json(ws.state_file, RunState)
    except FileNotFoundError:
        # Without checkpoints there is no run: `clean` deletes them together with the state.
        checkpoints = _newest_checkpoint(ws)
        return RunState() if checkpoints is None else _rebuilt_state(ws, "")
    except (OSError, Damaged) as error:
        return _rebuilt_state(ws, f"{error}; the next run replaces it")
    if state.status == "paused" and state.pid is None:
        # Before version 2.1 a stopped run was `paused` without a pid.
        return msgspec.structs.replace(state, status="stopped")
    if state.pid is None or is_alive(state.pid, state.identity):
        return state
    return _killed(state, f"the runner (pid {state.pid}) was killed")


def _killed(state: RunState, reason: str) -> RunState:
    command = f"gladius_train {JOBS['train'].resume_command}"
    remedy = f"{reason}; resume with: {command}{_resume_point(state)}"
    return msgspec.structs.replace(
        state,
        status="failed",
        pid=None,
        identity="",
        activity="",
        work="",
        last_error=remedy,
    )


_STATE_EVENTS = (
    "RunStarted",
    "PhaseStarted",
    "StepDone",
    "EvalDone",
    "CheckpointSaved",
    "RunPaused",
    "RunResumed",
    "RunEnded",
)


def _rebuilt_state(ws: Workspace, problem: str) -> RunState:
    """The state from the newest events of the history, else from the newest checkpoint."""
    from engine.run.history import HistoryReader  # `status` needs it only here

    reader = HistoryReader(ws.history_file)
    try:
        record = reader.last_run("train")
        found = [] if record is None else [reader.last(record.run_id, t) for t in _STATE_EVENTS]
    finally:
        reader.close()
    newest = _newest_checkpoint(ws)
    if record is None or not any(found):
        if newest is None:
            return RunState(last_error=problem)
        return RunState(
            status="stopped",
            step=newest[0],
            last_checkpoint=str(newest[1]),
            last_checkpoint_step=newest[0],
            last_error=problem,
        )
    view = RunView(run_id=record.run_id)
    events = sorted((event for event in found if event is not None), key=lambda e: e.seq)
    view.take(events)
    owner = lock_owner(ws, "train")
    if owner is not None:
        return state_of(view, owner.pid, owner.identity)
    state = state_of(view)
    if problem and not state.last_error:
        state = msgspec.structs.replace(state, last_error=problem)
    return state if view.ended is not None else _killed(state, "the run was interrupted")


def _newest_checkpoint(ws: Workspace) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint, not verified."""
    try:
        found = list_checkpoints(ws.checkpoints_dir)
    except OSError:
        return None
    return (found[-1].step, found[-1].path) if found else None


def _resume_point(state: RunState) -> str:
    saved = state.last_checkpoint_step
    return "" if saved is None else f" ({resume_point(saved, state.step)})"


class StateFile:
    """Keeps training_state.json up to date: at every change of status, else once a second."""

    def __init__(self, ws: Workspace, run_id: str) -> None:
        self._path = ws.state_file
        stored = read_state(ws)
        self.view = view_of(stored if stored.run_id == run_id else RunState(run_id=run_id))
        self.view.status = "preparing"
        self.pid = os.getpid()
        self.identity = identity_of(self.pid) or ""
        self._written: RunState | None = None
        self._written_at = 0.0

    @property
    def state(self) -> RunState:
        """The state to be written to the file."""
        return state_of(self.view, self.pid, self.identity)

    def apply(self, event: AnyEvent) -> None:
        """Fold `event` in; nothing is written yet."""
        self.view.take([event])

    def write_if_due(self) -> None:
        """Write the file durably if it is time to; raises OSError."""
        state = self.state
        if self._written is not None:
            urgent = state.status != self._written.status
            recent = time.monotonic() - self._written_at < 1.0
            if state == self._written or (recent and not urgent):
                return
        # Set before the attempt: on a full disk there is one attempt a second, not one per event.
        self._written, self._written_at = state, time.monotonic()
        write_json(self._path, msgspec.structs.replace(state, updated_at=time.time()))
