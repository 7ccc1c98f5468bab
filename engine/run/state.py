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
from engine.events import (
    AnyEvent,
    CheckpointSaved,
    EvalDone,
    HardwareRead,
    PhasePlan,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
)
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


def advance(state: RunState, event: AnyEvent) -> RunState:
    """The state after `event`; pure."""
    replace = msgspec.structs.replace
    match event:
        case RunStarted():
            same = state.run_id == event.run_id and event.resumed_from is not None
            base = state if same else RunState(pid=state.pid, identity=state.identity)
            return replace(
                base,
                status="training",
                run_id=event.run_id,
                preset=event.preset,
                phases=max((phase.index for phase in event.phases), default=0),
                plan=event.phases,
                step=event.resumed_from or 0,
                current_params=event.current_params,
                target_params=event.target_params,
                started_at=base.started_at or event.time,
                last_error="",
            )
        case Progress(task="create"):
            return replace(state, current_params=int(event.done))
        case PhaseStarted():
            return replace(
                state,
                phase=event.phase,
                phases=event.phases,
                phase_name=event.name,
                current_expert=event.expert,
                experts_completed=_experts(state.plan, before=event.phase),
            )
        case StepDone():
            return replace(
                state,
                step=event.step,
                tokens_seen=event.tokens_seen,
                loss=event.loss,
                training_hours=event.training_seconds / 3600,
            )
        case EvalDone():
            return replace(state, bits_per_byte=event.bits_per_byte)
        case CheckpointSaved():
            return replace(
                state,
                last_checkpoint=event.path,
                last_checkpoint_step=event.step,
                last_checkpoint_at=event.time,
            )
        case HardwareRead():
            return replace(state, hardware=event)
        case RunPaused():
            return replace(state, status="paused")
        case RunResumed():
            return replace(state, status="training")
        case RunEnded(status="completed"):
            return replace(
                state,
                status="completed",
                current_expert=None,
                experts_completed=_experts(state.plan, before=None),
                pid=None,
                identity="",
            )
        case RunEnded():
            failed = event.status == "failed"
            return replace(
                state,
                status="failed" if failed else "paused",
                last_error=event.reason if failed else "",
                pid=None,
                identity="",
            )
    return state


def _experts(plan: tuple[PhasePlan, ...], before: int | None) -> tuple[str, ...]:
    return tuple(p.expert for p in plan if p.expert and (before is None or p.index < before))


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
        state = read_state(ws)
        if state.run_id != run_id:
            state = RunState(run_id=run_id)
        pid = os.getpid()
        self.state = msgspec.structs.replace(
            state, status="training", pid=pid, identity=identity_of(pid) or "", last_error=""
        )
        self._written: RunState | None = None
        self._written_at = 0.0

    def apply(self, event: AnyEvent) -> None:
        """Fold `event` in; nothing is written yet."""
        self.state = advance(self.state, event)

    def write_if_due(self) -> None:
        """Write the file durably if it is time to; OSError when it can't be."""
        if self._written is not None:
            unchanged = self.state == self._written
            urgent = self.state.status != self._written.status
            if unchanged or (not urgent and time.monotonic() - self._written_at < 1.0):
                return
        # Set before the attempt: on a full disk there is one try a second, not one per event.
        self._written, self._written_at = self.state, time.monotonic()
        write_json(self._path, msgspec.structs.replace(self.state, updated_at=time.time()))


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
