"""Owns training_state.json, and the lock of each kind of job: who owns a run.

The state is a summary folded from events; the history holds the events themselves.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from engine.errors import GladiusError, LockedError
from engine.events import AnyEvent, CheckpointSaved, HardwareRead, PhasePlan
from engine.run.view import RunView
from engine.workspace import Workspace, write_bytes, write_json

Status = Literal["not_started", "training", "paused", "completed", "failed"]

_MUTEX_SECONDS = 1.5


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the training run stands; `paused` with no pid is a run that was stopped."""

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
    """Unpaused worker time of the whole run."""
    started_at: float | None = None
    """Unix time at which the run began."""
    updated_at: float | None = None
    last_checkpoint: str | None = None
    last_checkpoint_step: int | None = None
    last_checkpoint_at: float | None = None
    hardware: HardwareRead | None = None
    pid: int | None = None
    """The runner's; None when nothing runs."""
    identity: str = ""
    """What tells this pid's process from a later one of the same number."""
    last_error: str = ""


def state_of(view: RunView, pid: int | None = None, identity: str = "") -> RunState:
    """The state that a view of the run amounts to; `pid` and `identity` are its runner's."""
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
        last_error=ended.reason if ended is not None and ended.status == "failed" else "",
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
    """The state as the file tells it; not_started where there is none.

    A state that claims a process which is gone reads `failed`, with the remedy in `last_error`.
    """
    try:
        state = msgspec.json.decode(ws.state_file.read_bytes(), type=RunState)
    except FileNotFoundError:
        return RunState()
    except (OSError, msgspec.MsgspecError) as error:
        problem = f"{ws.state_file} can't be read ({error}); the next run writes it anew"
        return RunState(last_error=problem)
    if state.pid is None or is_alive(state.pid, state.identity):
        return state
    return msgspec.structs.replace(
        state,
        status="failed",
        pid=None,
        identity="",
        last_error=f"its process (pid {state.pid}) is gone; go on with: gladius_train resume",
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
        """What the file is to hold."""
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


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the lock of a job."""

    job: str
    pid: int
    identity: str
    since: float
    """Unix time."""
    socket: str = ""
    """Path of its control socket."""


def identity_of(pid: int) -> str | None:
    """What tells this process from another that gets its pid later; None when it does not run.

    On Linux the boot and the start in clock ticks since then, which no change of the clock moves.
    """
    try:
        # The name, in brackets, may hold anything; the fields are counted from its end.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        pass
    import psutil  # late: where there is no /proc; `status` starts without it

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def is_alive(pid: int, identity: str) -> bool:
    """Whether the process that was `pid` still runs."""
    return identity_of(pid) == identity


def lock_path(ws: Workspace, job: str) -> Path:
    """The record of the job's owner; it is there only while (or after a crash of) a runner."""
    return ws.tmp / f"{job}.lock"


def lock_owner(ws: Workspace, job: str) -> Owner | None:
    """The live owner of the job's lock, if there is one."""
    try:
        owner = msgspec.json.decode(lock_path(ws, job).read_bytes(), type=Owner)
    except (OSError, msgspec.MsgspecError):
        return None
    return owner if is_alive(owner.pid, owner.identity) else None


@contextmanager
def hold_lock(ws: Workspace, job: str, socket: str = "") -> Iterator[Owner]:
    """Own the job for the time of the block; LockedError, within 2 s, when another does.

    Ownership is the record of a live process. A file lock alone would outlive a killed runner
    whose forked child still holds it; here one only orders those who look and write.
    """
    pid = os.getpid()
    owner = Owner(
        job=job, pid=pid, identity=identity_of(pid) or "", since=time.time(), socket=socket
    )
    path = lock_path(ws, job)
    with _mutex(ws.tmp / ".lock", job):
        if (other := lock_owner(ws, job)) is not None:
            raise LockedError(_locked(other))
        try:
            write_bytes(path, msgspec.json.encode(owner))
        except OSError as error:
            raise GladiusError(
                f"can't write {path}: {error.strerror}; make room there, or choose another --root"
            ) from error
    try:
        yield owner
    finally:
        # The record is ours for as long as we live, so no other process touches it now.
        path.unlink(missing_ok=True)


def _locked(owner: Owner) -> str:
    since = datetime.fromtimestamp(owner.since).strftime("%Y-%m-%d %H:%M:%S")
    which = "" if owner.job == "train" else f" --job {owner.job}"
    return (
        f"{owner.job} already runs here (pid {owner.pid}, since {since}); watch it with: "
        f"gladius_train dashboard --follow{which}; end it with: gladius_train stop{which}"
    )


@contextmanager
def _mutex(path: Path, job: str) -> Iterator[None]:
    """Exclude other processes for a moment; LockedError when it can't be had in time."""
    deadline = time.monotonic() + _MUTEX_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise GladiusError(
                f"can't write {path}: {error.strerror}; choose another folder with --root"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # `clean` may have removed the file in between: then this is nobody's lock.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
            os.close(descriptor)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            time.sleep(0.01)
        except OSError as error:
            os.close(descriptor)
            raise GladiusError(
                f"can't lock {path}: {error.strerror}; put the root on a file system with locks"
            ) from error
        if time.monotonic() > deadline:
            raise LockedError(f"another program is starting {job} here; try again in a moment")
    try:
        yield
    finally:
        os.close(descriptor)
