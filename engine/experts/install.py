"""Install a verified expert: write its manifest and move its folder to tmp/models."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from engine.errors import GladiusError
from engine.experts.registry import MANIFEST, VERIFIED_TIMES, ExpertSpec, Manifest, ManifestFile
from engine.workspace import Workspace, expert_dir, publish_dir, sha256_file, write_json


def write_manifest(
    folder: Path, spec: ExpertSpec, revision: str = "", known: Mapping[str, str] | None = None
) -> None:
    """Write manifest.json: size, sha256 and modification time of every other file in `folder`.

    `known`: sha256 by relative path, for files that need not be hashed again.
    """
    known = known or {}
    files: dict[str, ManifestFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path in (folder / MANIFEST, folder / VERIFIED_TIMES):
            continue
        name = path.relative_to(folder).as_posix()
        found = path.stat()
        files[name] = ManifestFile(
            size=found.st_size,
            sha256=known.get(name) or sha256_file(path),
            mtime_ns=found.st_mtime_ns,
        )
    manifest = Manifest(files=files, source=spec.repo, revision=revision, license=spec.license)
    write_json(folder / MANIFEST, manifest)


def install_expert(workspace: Workspace, spec: ExpertSpec, folder: Path) -> Path:
    """Move a complete folder to tmp/models/NAME, replacing what was there; returns that path.

    On another file system it is copied first, so that the final move is atomic.
    """
    final = expert_dir(workspace, spec.name)
    if final.is_symlink():
        raise GladiusError(f"{final} is a symbolic link; remove it, then download again")
    if os.stat(folder).st_dev != os.stat(final.parent).st_dev:
        folder = _copied(folder, final.with_name(f".{spec.name}-tmp"))
    previous = final.with_name(f".{spec.name}-tmp-former")
    shutil.rmtree(previous, ignore_errors=True)
    if final.exists():
        final.rename(previous)
    publish_dir(folder, final)
    shutil.rmtree(previous, ignore_errors=True)
    return final


def _copied(folder: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(folder, copy)  # keeps the modification times of the manifest
    except (OSError, shutil.Error) as error:
        shutil.rmtree(copy, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from error
        raise
    return copy
