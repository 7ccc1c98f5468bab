"""Paths below a root, and durable writes (write, fsync, rename)."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import GladiusError, UsageError

_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Workspace:
    """The folders and files of one root (`--root`, else GLADIUS_ROOT, else the current folder)."""

    root: Path

    @classmethod
    def find(cls, root: str | Path | None = None) -> Workspace:
        """The workspace at `root`, absolute and with links followed; nothing is created."""
        chosen = root or os.environ.get("GLADIUS_ROOT") or "."
        try:
            path = Path(chosen).expanduser().resolve()
            str(path).encode()  # it is stored as UTF-8 in configs and histories
            return cls(path)
        except (ValueError, OSError, RuntimeError) as error:
            raise UsageError(f"{str(chosen)!r} can't be a root folder: {error}") from error

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def cache_dir(self) -> Path:
        return self.tmp / "cache"

    @property
    def experts_dir(self) -> Path:
        return self.tmp / "models"

    @property
    def downloads_dir(self) -> Path:
        return self.tmp / "downloads"

    @property
    def experts_cache_dir(self) -> Path:
        return self.tmp / "experts_cache"

    @property
    def checkpoints_dir(self) -> Path:
        return self.tmp / "checkpoints"

    @property
    def logs_dir(self) -> Path:
        return self.tmp / "logs"

    @property
    def state_file(self) -> Path:
        return self.checkpoints_dir / "training_state.json"

    @property
    def history_file(self) -> Path:
        return self.logs_dir / "history.sqlite"

    @property
    def model_dir(self) -> Path:
        return self.models / "gladius_primary"

    @property
    def user_config(self) -> Path:
        return self.root / "gladius.toml"

    def log_file(self, day: date | None = None) -> Path:
        """The plain-text log of `day` (today by default)."""
        return self.logs_dir / f"training_{day or date.today():%Y%m%d}.log"

    def create(self) -> None:
        """Create all folders; raises GladiusError when the root can't be written."""
        folders = (
            self.models,
            self.cache_dir,
            self.experts_dir,
            self.downloads_dir,
            self.experts_cache_dir,
            self.checkpoints_dir,
            self.logs_dir,
        )
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            # Existing folders may be read-only: only a write shows it.
            probe = self.checkpoints_dir / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise GladiusError(
                f"can't write in {self.root}: {error.strerror or error}; "
                "choose another folder with --root"
            ) from error


def expert_dir(workspace: Workspace, name: str) -> Path:
    """The folder of a downloaded expert; raises UsageError for an invalid name."""
    if not _SAFE_NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid expert name; use letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    return workspace.experts_dir / name


def runtime_dir(root: Path) -> Path:
    """An owner-only folder (0700) for sockets, short enough for AF_UNIX; created if missing.

    In XDG_RUNTIME_DIR if that can be used, else in the temporary folder. Raises GladiusError if
    none can be used, or if it belongs to another user.
    """
    import hashlib  # imported here because `status` needs neither of them
    import tempfile

    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    problem: OSError | None = None
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp")
    for candidate in dict.fromkeys(candidates):
        # A relative one would be another folder for each process. A socket's path may have 107
        # bytes; 40 of them are for our part.
        if candidate and os.path.isabs(candidate) and len(os.fsencode(candidate)) < 67:
            base = Path(candidate) / f"gladius-{os.getuid()}"
            try:
                _make_private(base)
                _make_private(base / name)
                return base / name
            except OSError as error:
                problem = error
    raise GladiusError(
        f"no folder for control sockets can be created ({problem}); "
        "set XDG_RUNTIME_DIR to a folder that you own"
    )


def _make_private(path: Path) -> None:
    """Create an owner-only folder; raises OSError if it can't be created or written, GladiusError
    if it belongs to another user, who may have created it first in a shared temporary folder."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise GladiusError(
            f"{path} belongs to another user; set XDG_RUNTIME_DIR to a folder that you own"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    if not os.access(path, os.W_OK | os.X_OK):  # a file system that is read-only
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def remove_runtime_dir(root: Path) -> None:
    """Delete the root's folder for sockets, if no other job uses it."""
    try:
        folder = runtime_dir(root)
        folder.rmdir()
        folder.parent.rmdir()
    except (OSError, GladiusError):
        pass


def moved_path(path: str, before: str | Path, after: str | Path) -> str:
    """The path below the root `after` if it was below the root `before`."""
    inside = path == str(before) or path.startswith(f"{before}/")
    return f"{after}{path[len(str(before)) :]}" if inside else path


def assets_dir() -> Path:
    """The folder of shipped data: the installed copy, or the repository's `assets/`."""
    package = Path(__file__).resolve().parent
    installed = package / "assets"
    return installed if installed.is_dir() else package.parent / "assets"


def fsync_dir(path: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FAILPOINT = "GLADIUS_FAILPOINT"
"""Environment variable of tests: the process is killed at a boundary of a durable write.

Its value is NAME[:N[:both]]: at the N-th time that this process reaches the boundary; `both` kills
its parent too. Names are FILE/BOUNDARY, such as `journal.jsonl/written` or `publish/renamed`, and
may have wildcards. `@PATH` reads the entries from a file, one a line; the first one counts, and is
removed before the kill, so that the restarted process continues with the next."""
_reached: dict[str, int] = {}


def failpoint(name: str) -> None:
    """A boundary of a durable write, at which a test can kill the process; see FAILPOINT."""
    if plan := os.environ.get(FAILPOINT):
        _die_if_planned(plan, name)


def _die_if_planned(plan: str, name: str) -> None:
    import signal

    entry, rest = plan, ""
    if plan.startswith("@"):
        try:
            entry, _, rest = Path(plan[1:]).read_text().partition("\n")
        except OSError:
            return
    wanted, count, both = [*entry.split(":"), "", ""][:3]
    if not wanted or not fnmatch.fnmatchcase(name, wanted):
        return
    _reached[entry] = _reached.get(entry, 0) + 1
    if _reached[entry] < int(count or 1):
        return
    if plan.startswith("@"):
        Path(plan[1:]).write_text(rest)
    if both:
        os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _write_all(descriptor: int, data: bytes | memoryview, name: str) -> None:
    view = memoryview(data)
    if os.environ.get(FAILPOINT) and len(view) > 1:
        half = len(view) // 2
        os.write(descriptor, view[:half])
        failpoint(f"{name}/half")
        view = view[half:]
    while view:
        view = view[os.write(descriptor, view) :]


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file durably: a reader, or a crash, finds the old content or the new one."""
    temporary = path.parent / f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            failpoint(f"{path.name}/opened")
            _write_all(descriptor, data, path.name)
            failpoint(f"{path.name}/written")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        failpoint(f"{path.name}/synced")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    failpoint(f"{path.name}/renamed")
    fsync_dir(path.parent)
    failpoint(f"{path.name}/durable")


def write_new_file(path: Path, pieces: Iterable[memoryview]) -> None:
    """Write a new file durably, piece by piece; raises FileExistsError if it exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        failpoint(f"{path.name}/opened")
        for piece in pieces:
            _write_all(descriptor, piece, path.name)
        failpoint(f"{path.name}/written")
        os.fsync(descriptor)
        failpoint(f"{path.name}/synced")
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` durably with `value` as indented JSON (structs and plain data)."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def append_line(path: Path, line: bytes) -> None:
    """Append one line durably; an incomplete last line, left by a crash, is removed first.

    One writer at a time. When the line can't be written completely (a full disk) the file is left
    unchanged and OSError is raised.
    """
    created = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        end = _complete_lines(descriptor)
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        failpoint(f"{path.name}/opened")
        try:
            _write_all(descriptor, line.rstrip(b"\n") + b"\n", path.name)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
        failpoint(f"{path.name}/written")
        os.fsync(descriptor)
        failpoint(f"{path.name}/synced")
    finally:
        os.close(descriptor)
    if created:
        fsync_dir(path.parent)


def _complete_lines(descriptor: int) -> int:
    """Length in bytes of the file without an incomplete last line."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def publish_dir(temporary: Path, final: Path) -> None:
    """Rename a finished folder durably; raises FileExistsError when `final` exists."""
    if os.path.lexists(final):
        raise FileExistsError(f"{final} exists")
    for folder, _, files in os.walk(temporary):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_dir(Path(folder))
    failpoint("publish/synced")
    os.rename(temporary, final)
    failpoint("publish/renamed")
    fsync_dir(final.parent)
    failpoint("publish/durable")


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hex, read in pieces."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_bytes(path: Path) -> int:
    """Bytes of the files below `path`; links are not followed."""
    total = 0
    stack = [path]
    while stack:
        current = stack.pop()
        try:
            found = current.lstat()
            if stat.S_ISDIR(found.st_mode):
                stack.extend(current / entry.name for entry in os.scandir(current))
            else:
                total += found.st_size
        except OSError:
            continue
    return total


def remove_entry(path: Path) -> None:
    """Delete a file, a folder with its content, or a link (never its target)."""
    if path.is_dir() and not path.is_symlink():
        import shutil

        # rmtree unlinks the links inside and does not follow them.
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
