"""Owns the verification of an expert that lies here: every byte hashed, form and loadability
checked, and the outcome kept in its manifest so that nobody has to do it again. Part of a job.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from engine.errors import GladiusError
from engine.events import Progress
from engine.experts import folder as folders
from engine.experts.meter import Meter
from engine.experts.registry import (
    MANIFEST,
    ExpertSpec,
    Manifest,
    ManifestFile,
    expert_path,
    read_manifest,
)
from engine.run.job import JobContext
from engine.workspace import Workspace, tree_bytes, write_json

_PIECE = 1 << 20
_BY_FORM = "its form is whole and its tokenizer loads; there were no hashes to compare"


def verify_expert(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> str:
    """Verify what lies here of the expert, offline; GladiusError names the first thing wrong.

    The files of an expert that was fetched are hashed and compared with what the Hub said then;
    one that was put there by hand gets a manifest with the hashes that it has. Returns what was
    found, in words.
    """
    path = expert_path(workspace, spec)
    if not path.exists():
        raise GladiusError(f"{spec.name}: nothing is there to verify ({path})")
    if spec.source == "gguf":
        _load(workspace, spec, ctx)
        return _BY_FORM
    own = spec.source == "folder"
    manifest = None if own else read_manifest(path)
    known = manifest is not None
    problem = folders.lacking(path)
    files: dict[str, ManifestFile] = {}
    if problem is None and manifest is not None:
        problem, files = _compare(path, manifest, spec, ctx)
    elif problem is None and not own:
        manifest = Manifest(files={}, source=spec.repo, license=spec.license)
        files = _hash_all(path, spec, ctx)
    error = GladiusError(f"{spec.name}: {problem}; {_remedy(spec)}") if problem else None
    if error is None:
        try:
            _load(workspace, spec, ctx)
        except GladiusError as refusal:
            error, problem = refusal, str(refusal).removeprefix(f"{spec.name}: ")
    if manifest is not None and (manifest.files or not problem):
        # After a problem `files` is cut short: the manifest keeps all that it named.
        _record(path, manifest, manifest.files if problem else files, problem or "")
    if error is not None:
        raise error
    if own:
        return _BY_FORM
    return "every file is intact" if known else f"{_BY_FORM}; they are kept from now on"


def matches_manifest(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> bool:
    """Whether what lies here is, by every byte, what was once verified; the manifest then says so
    again. False where it isn't, or where there is no manifest."""
    path = expert_path(workspace, spec)
    manifest = read_manifest(path)
    if manifest is None or folders.lacking(path) is not None:
        return False
    problem, files = _compare(path, manifest, spec, ctx)
    if problem is None:
        _record(path, manifest, files, "")
    return problem is None


def _load(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> None:
    def load() -> None:
        # Imported here: it brings transformers and torch, which take seconds.
        from engine.experts.loadable import check_loadable

        check_loadable(workspace, spec)

    ctx.run_in_thread(load, f"loading the tokenizer of {spec.name}")


def _compare(
    path: Path, manifest: Manifest, spec: ExpertSpec, ctx: JobContext
) -> tuple[str | None, dict[str, ManifestFile]]:
    """The first difference, and the manifest's files with their times as they are now."""
    total = sum(file.size for file in manifest.files.values())
    teller = _Teller(spec, total, ctx)
    files: dict[str, ManifestFile] = {}
    for name, file in manifest.files.items():
        place = path / name
        try:
            found = place.stat()
        except OSError:
            return f"{name} is missing", files
        if found.st_size != file.size:
            return f"{name} has {found.st_size:,} of {file.size:,} bytes", files
        if _hash(place, teller) != file.sha256:
            return f"{name} has another sha256 than it was published with", files
        files[name] = msgspec.structs.replace(file, mtime_ns=found.st_mtime_ns)
    teller.finish()
    return None, files


def _hash_all(path: Path, spec: ExpertSpec, ctx: JobContext) -> dict[str, ManifestFile]:
    teller = _Teller(spec, tree_bytes(path), ctx)
    files = {}
    for place in sorted(path.iterdir()):
        if not place.is_file() or place.name == MANIFEST:
            continue
        found = place.stat()
        files[place.name] = ManifestFile(
            size=found.st_size, sha256=_hash(place, teller), mtime_ns=found.st_mtime_ns
        )
    teller.finish()
    return files


def _record(path: Path, manifest: Manifest, files: dict[str, ManifestFile], damage: str) -> None:
    try:
        write_json(path / MANIFEST, msgspec.structs.replace(manifest, files=files, damage=damage))
    except OSError:
        pass  # a read-only disk: the verdict still stands, it is only not remembered


def _hash(path: Path, teller: _Teller) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            teller.add(len(piece))
    return digest.hexdigest()


def _remedy(spec: ExpertSpec) -> str:
    if spec.source in ("folder", "gguf"):
        return f"put it right in {spec.repo}"
    return f"fetch what is damaged with: gladius_train download {spec.name}"


class _Teller:
    """Tells how far a verification is, and serves commands meanwhile."""

    def __init__(self, spec: ExpertSpec, total: int, ctx: JobContext) -> None:
        self._spec = spec
        self._total = total
        self._ctx = ctx
        self._meter = Meter()
        self._done = 0
        self._told = -1.0

    def add(self, count: int) -> None:
        self._done += count
        self._ctx.checkpoint_point(f"verifying {self._spec.name}")
        self._meter.update(self._done)
        share = self._done / max(self._total, 1)
        if share - self._told >= 0.02:
            self._told = share
            self._tell()

    def finish(self) -> None:
        self._tell(finished=True)

    def _tell(self, finished: bool = False) -> None:
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
