"""Owns the last step of a fetch: the manifest, and the folder moved into its place whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.errors import GladiusError
from engine.experts.registry import MANIFEST, ExpertSpec, Manifest, ManifestFile
from engine.workspace import Workspace, publish_dir, sha256_file, write_json


def write_manifest(folder: Path, spec: ExpertSpec, revision: str = "") -> None:
    """Write manifest.json: size and sha256 of every other file below `folder`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {
        path.relative_to(folder).as_posix(): ManifestFile(
            size=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in paths
        if path != folder / MANIFEST
    }
    manifest = Manifest(files=files, source=spec.repo, revision=revision, license=spec.license)
    write_json(folder / MANIFEST, manifest)


def publish_expert(workspace: Workspace, spec: ExpertSpec, folder: Path) -> Path:
    """Move a finished folder to tmp/models/NAME, in place of what lay there; returns that path."""
    final = workspace.expert_dir(spec.name)
    if final.is_symlink():
        raise GladiusError(f"{final} is a link; remove it, then download again")
    former = final.with_name(f".{spec.name}-former")
    shutil.rmtree(former, ignore_errors=True)
    if final.exists():
        final.rename(former)
    publish_dir(folder, final)
    shutil.rmtree(former, ignore_errors=True)
    return final
