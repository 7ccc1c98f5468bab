"""Moving, finding and deleting checkpoint folders, so that a crash never leaves half of one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from engine import workspace
from engine.checkpoint.errors import CheckpointError
from engine.checkpoint.layout import (
    PROTECTED,
    SUPERSEDED,
    TEMPORARY,
    CheckpointInfo,
    best_checkpoints,
    list_checkpoints,
    step_folder,
)
from engine.checkpoint.manifest import Broken, read_manifest
from engine.errors import MissingError


class CheckpointFolders:
    """The checkpoint folders of one root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[CheckpointInfo]:
        """The full checkpoints on disk, the oldest first; not verified."""
        return list_checkpoints(self.root)

    def find(self, which: int | Literal["best"] | Path) -> Path:
        """The folder of a step, of the best weights, or `which` itself; raises MissingError."""
        if isinstance(which, Path):
            path = which
        elif which == "best":
            bests = best_checkpoints(self.root)
            path = min(bests, key=_best_order, default=self.root / "best-*")
        else:
            path = self.root / step_folder(which)
        if not path.is_dir():
            steps = ", ".join(str(info.step) for info in self.list()) or "none"
            raise MissingError(f"there is no checkpoint {path}; available steps: {steps}")
        return path

    def free_path(self, name: str) -> Path:
        """A path with this name, or with -2, -3, ... appended where it is taken."""
        path, number = self.root / name, 2
        while os.path.lexists(path):
            path, number = self.root / f"{name}-{number}", number + 1
        return path

    def move_aside(self, path: Path, prefix: str) -> Path:
        """Rename a checkpoint to `prefix-name`; returns the new path. Raises CheckpointError."""
        target = self.free_path(f"{prefix}-{path.name}")
        try:
            os.rename(path, target)
            workspace.fsync_dir(self.root)
        except OSError as error:
            raise CheckpointError(
                f"can't move {path} to {target.name}: {error.strerror}; make its folder writable"
            ) from error
        return target

    def supersede_after(self, step: int) -> None:
        """Move checkpoints after `step` aside, because their steps are trained again.

        They are deleted after the next save. Raises CheckpointError when one can't be moved:
        loading it later would be wrong.
        """
        for info in self.list():
            if info.step > step:
                self.move_aside(info.path, SUPERSEDED)

    def remove_temporaries(self) -> None:
        """Delete what a crash left unfinished (call it while holding the job's lock)."""
        for path in self.root.glob(f"{TEMPORARY}*"):
            workspace.remove_entry(path)

    def remove_superseded(self) -> None:
        """Delete the checkpoints that `supersede_after` moved aside."""
        for path in self.root.glob(f"{SUPERSEDED}-*"):
            self._remove(path)

    def remove_other_bests(self, kept: Path) -> None:
        """Delete all best weights except `kept`."""
        for path in best_checkpoints(self.root):
            if path != kept:
                self._remove(path)

    def prune(self, step: int, keep: int) -> None:
        """Delete the checkpoints that the one of `step`, just saved, makes unnecessary.

        The newest `keep` and the newest protected one stay. Folders without a valid manifest do
        not count and are not deleted. What can't be deleted is tried again after the next save.
        """
        infos = [i for i in self.list() if i.step <= step and _has_manifest(i.path)]
        protected = [info for info in infos if info.protected]
        kept = {info.path for info in (*infos[-keep:], *protected[-1:])}
        with suppress(OSError):
            for info in protected[:-1]:
                (info.path / PROTECTED).unlink()
            for info in infos:
                if info.path not in kept:
                    self._remove(info.path)
            self.remove_superseded()

    def _remove(self, path: Path) -> None:
        """Delete a folder; a crash in the middle leaves a temporary one, not half a checkpoint."""
        doomed = self.free_path(f"{TEMPORARY}old-{path.name}")
        workspace.failpoint("remove/begun")
        os.rename(path, doomed)
        workspace.failpoint("remove/renamed")
        workspace.remove_entry(doomed)


def _best_order(path: Path) -> tuple[float, float]:
    """Lowest score first, then the newest; unreadable ones last."""
    try:
        manifest = read_manifest(path)
    except (Broken, OSError):
        return float("inf"), 0.0
    return float("inf") if manifest.score is None else manifest.score, -manifest.created


def _has_manifest(path: Path) -> bool:
    try:
        read_manifest(path)
    except (Broken, OSError):
        return False
    return True
