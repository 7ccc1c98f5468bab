"""The lock of each kind of job on a root, held by a live process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from engine.errors import GladiusError, LockedError
from engine.small_files import Damaged, read_json
from engine.workspace import Workspace, runtime_dir, write_bytes

_MUTEX_SECONDS = 1.5


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds the lock of a job."""

    job: str
    pid: int
    identity: str
    since: float
    """Unix time."""
    socket: str = ""
    """Path of its control socket."""


def identity_of(pid: int) -> str | None:
    """Distinguishes a process from a later one with the same pid; None when it does not run.

    On Linux the boot id and the start time in clock ticks since boot, so clock changes don't
    affect it.
    """
    try:
        # The process name, in brackets, may contain anything: count the fields after it.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        pass
    import psutil  # only without /proc: `status` starts faster without it

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def is_alive(pid: int, identity: str) -> bool:
    """Whether the process that was `pid` still runs."""
    return identity_of(pid) == identity


def lock_path(ws: Workspace, job: str) -> Path:
    """The file that names the owner; it exists while a runner runs, and after it crashed."""
    return ws.tmp / f"{job}.lock"


def lock_owner(ws: Workspace, job: str) -> Owner | None:
    """The live owner of the job's lock, if there is one."""
    try:
        owner = read_json(lock_path(ws, job), Owner)
    except (OSError, Damaged):
        return None
    return owner if is_alive(owner.pid, owner.identity) else None


@contextmanager
def hold_lock(ws: Workspace, job: str, socket: str = "") -> Iterator[Owner]:
    """Hold the lock while the block runs; raises LockedError within 2 s when it is held.

    The lock is a file in the root that names a live process. As that file can be deleted, a file
    in the runtime folder is locked too. A file lock alone would not do: it outlives a killed runner
    whose forked child inherited it, and is free where the runtime folder is another.
    """
    pid = os.getpid()
    owner = Owner(
        job=job, pid=pid, identity=identity_of(pid) or "", since=time.time(), socket=socket
    )
    path = lock_path(ws, job)
    with _mutex(ws.tmp / ".lock", job):
        if (other := lock_owner(ws, job)) is not None:
            raise LockedError(_locked(other))
        runtime = _lock_runtime_file(ws, owner)
        try:
            write_bytes(path, msgspec.json.encode(owner))
        except OSError as error:
            _unlock_runtime_file(runtime)
            raise GladiusError(
                f"can't write {path}: {error.strerror}; make room there, or choose another --root"
            ) from error
    try:
        yield owner
    finally:
        # No other process changes the file while this one lives.
        path.unlink(missing_ok=True)
        _unlock_runtime_file(runtime)


def restore_lock(ws: Workspace, owner: Owner) -> bool:
    """Write the lock's file again if it was deleted or damaged; whether it was. Cheap."""
    try:
        if read_json(lock_path(ws, owner.job), Owner) == owner:
            return False
    except (OSError, Damaged):
        pass
    try:
        write_bytes(lock_path(ws, owner.job), msgspec.json.encode(owner))
    except OSError:
        return False  # tried again
    return True


def _lock_runtime_file(ws: Workspace, owner: Owner) -> tuple[Path, int] | None:
    """Lock the root's file in the runtime folder, and write the owner into it; raises LockedError.

    Not inherited by programs that this process starts. None without a runtime folder.
    """
    try:
        path = runtime_dir(ws.root) / f"{owner.job}.lock"
    except GladiusError:
        return None
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # a job that has just ended deleted the empty folder
            runtime_dir(ws.root)
            continue
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former owner deletes the file when it ends: then others would lock a new one.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, msgspec.json.encode(owner), 0)
                return path, descriptor
            os.close(descriptor)
        except FileNotFoundError:
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            try:
                other = read_json(path, Owner)
            except (OSError, Damaged):
                other = None
            if other is None:
                raise LockedError(f"another program holds {path}; try again in a moment") from None
            if is_alive(other.pid, other.identity):
                raise LockedError(_locked(other)) from None
            # A forked child of a killed runner still holds it.
            path.unlink(missing_ok=True)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None


def _unlock_runtime_file(held: tuple[Path, int] | None) -> None:
    if held is not None:
        held[0].unlink(missing_ok=True)
        os.close(held[1])


def _locked(owner: Owner) -> str:
    since = datetime.fromtimestamp(owner.since).strftime("%Y-%m-%d %H:%M:%S")
    which = "" if owner.job == "train" else f" --job {owner.job}"
    return (
        f"{owner.job} already runs here (pid {owner.pid}, since {since}); watch it with: "
        f"gladius_train dashboard --follow{which}; end it with: gladius_train stop{which}"
    )


@contextmanager
def _mutex(path: Path, job: str) -> Iterator[None]:
    """Exclude other processes briefly; raises LockedError when it takes too long."""
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
            # `clean` may have removed the file in between: then others would lock a new one.
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
