"""Saving and loading checkpoints. A crash at any moment leaves the previous checkpoint intact.

Folder names are in `layout`. One process writes at a time.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import safetensors
import torch

from engine import workspace
from engine.checkpoint.errors import CheckpointError
from engine.checkpoint.folders import CheckpointFolders
from engine.checkpoint.hashing import FileRecord
from engine.checkpoint.layout import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    PROTECTED,
    REJECTED,
    RNG,
    STATE,
    CheckpointInfo,
    best_folder,
    step_folder,
)
from engine.checkpoint.manifest import (
    Broken,
    Manifest,
    is_run_file,
    read_manifest,
    read_small_file,
    verify,
)
from engine.checkpoint.tensor_files import read_tensors
from engine.checkpoint.train_state import TrainState
from engine.checkpoint.writer import CheckpointWriter, Content, encode_state, require_finite
from engine.small_files import read_json


class SavedInfo(msgspec.Struct, frozen=True):
    """A checkpoint that is on disk, verified."""

    path: Path
    bytes: int
    seconds: float


OnReject = Callable[[Path, str, Path | None], None]
"""Called with the path of a rejected checkpoint, the reason, and the path that it was moved to
(None: it could not be moved)."""


def _no_heartbeat() -> None:
    pass


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_best: bool = True,
        heartbeat: Callable[[], None] = _no_heartbeat,
    ) -> None:
        """keep: newest full checkpoints that are kept (at least 2). keep_best: keep the best
        weights too. heartbeat: called every few MiB of reading and writing."""
        self.folder = folder
        self.keep = max(2, keep)
        self.keep_best = keep_best
        self.heartbeat = heartbeat
        self._folders = CheckpointFolders(folder)
        self._writer = CheckpointWriter(self._folders, heartbeat)

    def save(
        self,
        state: TrainState,
        *,
        config_json: bytes,
        config_digest: str,
        reason: str = "interval",
        protect: bool = False,
    ) -> SavedInfo:
        """Write, publish and verify the checkpoint of `state.step`, then delete older ones.

        An existing checkpoint of this step that verifies is returned as it is; a broken one is
        moved aside first. protect: keep it, in place of the one that was protected before.

        Raises NonFinite or OutOfSpace before anything is written, OutOfSpace or CheckpointError
        when writing fails; the previous checkpoints are then intact, and nothing of this one is
        left.
        """
        began = time.monotonic()
        final = self.folder / step_folder(state.step)
        manifest = self._existing(final, state.step)
        if manifest is None:
            require_finite({"model": state.model_state, "optimizer": state.optimizer})
            content: Content = {
                MODEL: state.model_state,
                OPTIMIZER: state.optimizer,
                RNG: state.rng,
                STATE: encode_state(state),
                CONFIG: config_json,
                **state.files,
            }
            with self._writer.temporary(final, content) as temporary:
                files = self._writer.write(temporary, content)
                if protect:
                    (temporary / PROTECTED).touch()
                manifest = _make_manifest(
                    "full", state, reason=reason, config_digest=config_digest, files=files
                )
                self._writer.publish(temporary, final, manifest)
        elif protect:
            workspace.write_bytes(final / PROTECTED, b"")
        self._folders.prune(state.step, self.keep)
        return _saved(final, manifest, began)

    def save_best(
        self, state: TrainState, *, config_json: bytes, config_digest: str, score: float
    ) -> SavedInfo | None:
        """Keep the weights of `state` as the best ones (lowest score), without optimizer.

        The earlier best weights are deleted after these were verified. None when keep_best is
        off. Raises as save() does.
        """
        if not self.keep_best:
            return None
        began = time.monotonic()
        require_finite({"model": state.model_state})
        final = self._folders.free_path(best_folder(state.step))
        # With the tokenizer and the seal: exported weights need no other file of the run.
        content: Content = {MODEL: state.model_state, CONFIG: config_json, **state.files}
        with self._writer.temporary(final, content) as temporary:
            files = self._writer.write(temporary, content)
            manifest = _make_manifest(
                "weights",
                state,
                reason="best",
                config_digest=config_digest,
                files=files,
                score=score,
            )
            self._writer.publish(temporary, final, manifest)
        self._folders.remove_other_bests(final)
        return _saved(final, manifest, began)

    def load_newest(
        self, on_reject: OnReject, up_to: int | None = None
    ) -> tuple[TrainState, Manifest] | None:
        """The newest checkpoint that verifies (of step `up_to` or before), or None.

        One that does not verify is moved aside to rejected-... and reported, never deleted.
        """
        for info in reversed(self.list()):
            if up_to is not None and info.step > up_to:
                continue
            try:
                manifest = verify(info.path, self.heartbeat, info.step)
                return _read(info.path, manifest), manifest
            except (Broken, OSError) as error:
                moved = None
                with suppress(CheckpointError):  # a read-only folder: still reported
                    moved = self._folders.move_aside(info.path, REJECTED)
                on_reject(info.path, str(error), moved)
        return None

    def load(self, which: int | Literal["best"] | Path) -> tuple[TrainState, Manifest]:
        """One checkpoint: of a step, the best weights, or in a folder.

        The best weights come without optimizer, scalars and rng. Raises MissingError when there
        is none and CheckpointError when it does not verify; nothing is moved.
        """
        path = self.find(which)
        try:
            manifest = verify(path, self.heartbeat)
            return _read(path, manifest), manifest
        except (Broken, OSError) as error:
            raise _damaged(path, error) from error

    def read_config(self, which: int | Literal["best"] | Path) -> bytes:
        """The RunConfig (JSON) that a checkpoint was made with; raises as load() does."""
        path = self.find(which)
        try:
            return read_small_file(path, CONFIG, read_manifest(path))
        except (Broken, OSError) as error:
            raise _damaged(path, error) from error

    def list(self) -> list[CheckpointInfo]:
        """The full checkpoints on disk, the oldest first; not verified."""
        return self._folders.list()

    def find(self, which: int | Literal["best"] | Path) -> Path:
        """The folder of a step, of the best weights, or `which` itself; raises MissingError."""
        return self._folders.find(which)

    def supersede_after(self, step: int) -> None:
        """Move checkpoints after `step` aside: after a rollback their steps are trained again."""
        self._folders.supersede_after(step)

    def remove_temporaries(self) -> None:
        """Delete what a crash left unfinished (call it while holding the job's lock)."""
        self._folders.remove_temporaries()

    def _existing(self, final: Path, step: int) -> Manifest | None:
        """The manifest of an existing checkpoint that verifies; a broken one is moved aside."""
        if not os.path.lexists(final):
            return None
        try:
            return verify(final, self.heartbeat, step)
        except (Broken, OSError):
            self._folders.move_aside(final, REJECTED)
            return None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({error}); choose another checkpoint")


def _make_manifest(
    kind: Literal["full", "weights"],
    state: TrainState,
    *,
    reason: str,
    config_digest: str,
    files: dict[str, FileRecord],
    score: float | None = None,
) -> Manifest:
    return Manifest(
        kind=kind,
        step=state.step,
        tokens_seen=state.tokens_seen,
        reason=reason,
        score=score,
        created=time.time(),
        config_digest=config_digest,
        threads=torch.get_num_threads(),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "safetensors": safetensors.__version__,
        },
        files=files,
    )


def _saved(path: Path, manifest: Manifest, began: float) -> SavedInfo:
    size = sum(record.bytes for record in manifest.files.values())
    return SavedInfo(path, size, time.monotonic() - began)


def _read(path: Path, manifest: Manifest) -> TrainState:
    """The state in a folder that has just been verified."""
    state = TrainState(manifest.step, manifest.tokens_seen, read_tensors(path / MODEL))
    if manifest.kind == "full":
        state.optimizer = read_tensors(path / OPTIMIZER)
        state.rng = read_tensors(path / RNG)
        state.scalars = read_json(path / STATE)["scalars"]
        state.files = {
            name: read_small_file(path, name, manifest)
            for name in manifest.files
            if is_run_file(name)
        }
    return state
