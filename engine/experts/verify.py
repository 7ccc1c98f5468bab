"""Verify an expert on this machine: hash every file, check that it loads, store the result in its
manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from engine.errors import GladiusError
from engine.events import Progress
from engine.experts import folder as folders
from engine.experts.meter import Meter
from engine.experts.registry import (
    MANIFEST,
    VERIFIED_TIMES,
    ExpertSpec,
    Manifest,
    ManifestFile,
    expert_path,
    expert_status,
    read_manifest,
)
from engine.experts.trial import run_trial
from engine.run.job import JobContext
from engine.workspace import Workspace, tree_bytes, write_json

_CHUNK = 1 << 20
_REPORT_SHARE = 0.02
_VALID_FORMAT = "its format is valid and its tokenizer loads; there were no hashes to compare"


def verify_expert(
    workspace: Workspace, spec: ExpertSpec, ctx: JobContext, *, run_model: bool = False
) -> str:
    """Verify the expert without network; returns the result as text.

    run_model: also load its weights and let it write.

    The files of a downloaded expert are compared with the hashes in its manifest. An expert that
    was copied by hand gets a manifest with its present hashes.

    Raises:
        GladiusError: names the first problem.
        JobStopped: stop was requested.
    """
    path = expert_path(workspace, spec)
    if not path.exists():
        raise GladiusError(f"{spec.name}: {path} doesn't exist, so there is nothing to verify")
    if spec.source == "gguf":
        try_expert(spec, path, ctx, run_model)
        return _VALID_FORMAT
    is_users = spec.source == "folder"
    manifest = None if is_users else read_manifest(path)
    has_hashes = manifest is not None
    problem = folders.find_problem(path)
    files: dict[str, ManifestFile] = {}
    if problem is None and manifest is not None:
        problem, files = _compare(path, manifest, spec, ctx)
    elif problem is None and not is_users:
        manifest = Manifest(files={}, source=spec.repo, license=spec.license)
        progress = _VerifyProgress(spec, tree_bytes(path), ctx)
        files = _hash_all(path, progress.add)
        progress.finish()
    error = GladiusError(f"{spec.name}: {problem}; {_remedy(spec)}") if problem else None
    if error is None:
        try:
            try_expert(spec, path, ctx, run_model)
        except GladiusError as load_error:
            error, problem = load_error, str(load_error).removeprefix(f"{spec.name}: ")
    if manifest is not None and (manifest.files or not problem):
        # With a problem `files` is incomplete: keep the entries of the manifest.
        _store(path, manifest, manifest.files if problem else files, problem or "")
    if error is not None:
        raise error
    if is_users:
        return _VALID_FORMAT
    return "every file is intact" if has_hashes else f"{_VALID_FORMAT}; they are stored now"


def matches_manifest(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> bool:
    """Whether every file of the expert matches its manifest; updates the times in the manifest.

    False if there is a difference or no manifest.
    """
    path = expert_path(workspace, spec)
    manifest = read_manifest(path)
    if manifest is None or folders.find_problem(path) is not None:
        return False
    problem, files = _compare(path, manifest, spec, ctx)
    if problem is None:
        _store(path, manifest, files, "")
    return problem is None


def is_ready(
    workspace: Workspace, spec: ExpertSpec, heartbeat: Callable[[], None] = lambda: None
) -> bool:
    """Whether a job can use the expert.

    Where only modification times differ from the verified ones (the folder was copied), the files
    are hashed, and their new times are stored if nothing else has changed.
    """
    status = expert_status(workspace, spec)
    if not status.only_times_differ:
        return status.state == "ready"
    path = expert_path(workspace, spec)
    manifest = read_manifest(path)
    if manifest is None or verify_hashes(path, manifest, heartbeat):
        return False
    if spec.source != "folder":  # a user's folder is never written to
        _store_times(path, {name: (path / name).stat().st_mtime_ns for name in manifest.files})
    return True


def verify_hashes(
    folder: Path, manifest: Manifest, heartbeat: Callable[[], None] = lambda: None
) -> list[str]:
    """Names of the manifest's files whose size or sha256 differs, or that can't be read.

    heartbeat: called before every MiB; may raise to stop.
    """
    return [
        name
        for name, file in manifest.files.items()
        if not _matches(folder / name, file, heartbeat)
    ]


def hash_files(
    folder: Path, heartbeat: Callable[[], None] = lambda: None
) -> dict[str, ManifestFile]:
    """Size, sha256 and time of every file of the folder, without the manifest itself.

    Raises OSError if a file can't be read.
    """
    return _hash_all(folder, lambda count: heartbeat())


def _matches(path: Path, file: ManifestFile, heartbeat: Callable[[], None]) -> bool:
    try:
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        return _hash(path, lambda count: heartbeat()) == file.sha256
    except OSError:
        return False


def try_expert(spec: ExpertSpec, path: Path, ctx: JobContext, run_model: bool) -> None:
    """Try the expert in a child process and log what the user should know.

    run_model: also its weights. Raises GladiusError if it can't be used, or JobStopped.
    """
    for note in run_trial(spec, path, run_model=run_model, heartbeat=ctx.checkpoint_point):
        ctx.log(f"{spec.name}: {note}", "warning")


def _compare(
    path: Path, manifest: Manifest, spec: ExpertSpec, ctx: JobContext
) -> tuple[str | None, dict[str, ManifestFile]]:
    """(the first difference to the manifest or None, the verified files with their new times)"""
    progress = _VerifyProgress(spec, sum(file.size for file in manifest.files.values()), ctx)
    files: dict[str, ManifestFile] = {}
    for name, file in manifest.files.items():
        try:
            found = (path / name).stat()
        except OSError:
            return f"{name} is missing", files
        if found.st_size != file.size:
            return f"{name} has {found.st_size:,} of {file.size:,} bytes", files
        if _hash(path / name, progress.add) != file.sha256:
            return f"{name} is damaged: its sha256 is not the published one", files
        files[name] = msgspec.structs.replace(file, mtime_ns=found.st_mtime_ns)
    progress.finish()
    return None, files


def _hash_all(path: Path, count: Callable[[int], None]) -> dict[str, ManifestFile]:
    """Manifest entries of all files in the folder; `count` gets the bytes of each hashed piece."""
    files = {}
    for file in sorted(path.iterdir()):
        if not file.is_file() or file.name in (MANIFEST, VERIFIED_TIMES):
            continue
        found = file.stat()
        files[file.name] = ManifestFile(
            size=found.st_size, sha256=_hash(file, count), mtime_ns=found.st_mtime_ns
        )
    return files


def _store(path: Path, manifest: Manifest, files: dict[str, ManifestFile], damage: str) -> None:
    """Store the result: new files and damage in the manifest, new times next to it."""
    try:
        # A listed file keeps its entry, so that the manifest of intact files keeps its bytes.
        kept = files | manifest.files if manifest.files else files
        updated = msgspec.structs.replace(manifest, files=kept, damage=damage)
        if updated != read_manifest(path):
            write_json(path / MANIFEST, updated)
    except OSError:
        return  # a read-only disk: the result is valid, only not stored
    if not damage:
        _store_times(path, {name: file.mtime_ns for name, file in files.items()})


def _store_times(path: Path, times: Mapping[str, int]) -> None:
    try:
        write_json(path / VERIFIED_TIMES, dict(times))
    except OSError:
        pass  # a read-only disk: the files are hashed again at the next start


def _hash(path: Path, count: Callable[[int], None]) -> str:
    """The file's sha256 in hex; `count` gets the bytes of each piece before it is read on."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            count(len(chunk))
    return digest.hexdigest()


def _remedy(spec: ExpertSpec) -> str:
    if spec.source in ("folder", "gguf"):
        return f"correct it in {spec.repo}"
    return f"download the damaged files again with: gladius_train download {spec.name}"


class _VerifyProgress:
    """Reports the progress of a verification in steps of 2%, and carries out commands meanwhile."""

    def __init__(self, spec: ExpertSpec, total: int, ctx: JobContext) -> None:
        self._spec = spec
        self._total = total
        self._ctx = ctx
        self._meter = Meter()
        self._done = 0
        self._reported_share = -1.0

    def add(self, count: int) -> None:
        """Count hashed bytes. Raises JobStopped."""
        self._done += count
        self._ctx.checkpoint_point(f"verifying {self._spec.name}")
        self._meter.update(self._done)
        share = self._done / max(self._total, 1)
        if share - self._reported_share >= _REPORT_SHARE:
            self._reported_share = share
            self._report()

    def finish(self) -> None:
        """Report the end."""
        self._report(finished=True)

    def _report(self, finished: bool = False) -> None:
        self._ctx.emit(
            Progress(
                task=f"verify:{self._spec.name}",
                label=f"{self._spec.title}: verifying",
                done=self._total if finished else self._done,
                total=self._total,
                unit="B",
                rate=self._meter.rate,
                eta=None if finished else self._meter.eta(self._total - self._done),
                finished=finished,
            )
        )
