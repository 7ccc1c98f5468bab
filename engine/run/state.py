"""training_state.json: a summary of the training run, derived from its events.

The history holds the events themselves.
"""

from __future__ import annotations

import os
import time
from typing import Literal

import msgspec

from engine.events import AnyEvent, CheckpointSaved, HardwareRead, PhasePlan
from engine.run.job import JOBS
from engine.run.lock import identity_of, is_alive
from engine.run.view import RunView
from engine.workspace import Workspace, write_json

Status = Literal["not_started", "training", "paused", "completed", "failed"]


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of the training run; `paused` without a pid is a run that was stopped."""

    status: Status = "not_started"
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
    last_checkpoint_step: int | None = None
    last_checkpoint_at: float | None = None
    hardware: HardwareRead | None = None
    pid: int | None = None
    """Of the runner; None when nothing runs."""
    identity: str = ""
    """Distinguishes the process from a later one with the same pid, see `identity_of`."""
    last_error: str = ""


def state_of(view: RunView, pid: int | None = None, identity: str = "") -> RunState:
    """The state of a run from its view; `pid` and `identity` are its runner's."""
    ended = view.ended
    completed = ended is not None and ended.status == "completed"
    saved = view.checkpoint
    return RunState(
        status=_status(view),
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
    )


def _status(view: RunView) -> Status:
    if view.ended is not None:
        ends: dict[str, Status] = {"stopped": "paused", "completed": "completed"}
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
    )
    if state.last_checkpoint is not None:
        view.checkpoint = CheckpointSaved(
            step=state.last_checkpoint_step or 0,
            time=state.last_checkpoint_at or 0.0,
            path=state.last_checkpoint,
            bytes=0,
            seconds=0.0,
        )
    if state.hardware is not None:
        view.readings.append(state.hardware)
    return view


def read_state(ws: Workspace) -> RunState:
    """The stored state; `not_started` where there is none.

    When the runner that the state names no longer runs, the status is `failed` and `last_error`
    gives the remedy.
    """
    try:
        state = msgspec.json.decode(ws.state_file.read_bytes(), type=RunState)
    except FileNotFoundError:
        return RunState()
    except (OSError, msgspec.MsgspecError) as error:
        problem = f"{ws.state_file} can't be read ({error}); the next run replaces it"
        return RunState(last_error=problem)
    if state.pid is None or is_alive(state.pid, state.identity):
        return state
    return msgspec.structs.replace(
        state,
        status="failed",
        pid=None,
        identity="",
        last_error=(
            f"the runner (pid {state.pid}) was killed; resume with: gladius_train "
            f"{JOBS['train'].resume_command}"
        ),
    )


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
