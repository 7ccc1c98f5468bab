"""Owns the last step of a fetch: the manifest, and the folder moved into its place whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from engine.errors import GladiusError
from engine.experts.registry import MANIFEST, ExpertSpec, Manifest, ManifestFile
from engine.workspace import Workspace, publish_dir, sha256_file, write_json


def write_manifest(
    folder: Path, spec: ExpertSpec, revision: str = "", known: Mapping[str, str] | None = None
) -> None:
    """Write manifest.json: size, sha256 and time of every other file below `folder`.

    `known` gives the sha256 of files, by relative path, that need no second reading.
    """
    known = known or {}
    files: dict[str, ManifestFile] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path == folder / MANIFEST:
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


def publish_expert(workspace: Workspace, spec: ExpertSpec, folder: Path) -> Path:
    """Move a finished folder to tmp/models/NAME, in place of what lay there; returns that path.

    Where that is another file system than the folder's it is copied there first.
    """
    final = workspace.expert_dir(spec.name)
    if final.is_symlink():
        raise GladiusError(f"{final} is a link; remove it, then download again")
    if os.stat(folder).st_dev != os.stat(final.parent).st_dev:
        folder = _brought_over(folder, final.with_name(f".{spec.name}-tmp"))
    former = final.with_name(f".{spec.name}-tmp-former")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    publish_dir(folder, final)
    shutil.rmtree(former, ignore_errors=True)
    return final


def _brought_over(folder: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(folder, copy)  # keeps the times that the manifest names
    except (OSError, shutil.Error) as error:
        shutil.rmtree(copy, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from error
        raise
    return copy
