"""Owns checkpoints: written so that a crash leaves the former one, restored, and few of them kept.

A checkpoint is the state after a whole optimizer step, in a folder of its own:

    step-000012000/    model, optimizer, rng (.safetensors), state.json, run_config.json,
                       manifest.json (sizes, SHA-256, digest of the config, versions)
    step-.../protected an empty file: this one stays until another is protected
    best-000012000/    the weights of the best evaluation, their config and a manifest
    rejected-...       did not verify; never deleted here
    superseded-...     its steps are done again; deleted after the next save
    .tmp-...           unfinished; deleted at the next start

When to save, and what a scalar means, is the trainer's. One process writes at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors
import torch
from torch import Tensor

from engine import workspace
from engine.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RNG,
    STATE,
    Broken,
    Manifest,
    encode_manifest,
    read_manifest,
    verify,
)
from engine.checkpoint.tensor_files import (
    FileRecord,
    first_non_finite,
    read_tensors,
    tensors_bytes,
    write_file,
    write_tensors,
)
from engine.checkpoint.train_state import (
    TrainState,
    load_optimizer_tensors,
    load_rng_tensors,
    optimizer_tensors,
    rng_tensors,
)
from engine.errors import GladiusError, MissingError

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "CheckpointStore",
    "NonFinite",
    "OutOfSpace",
    "SavedInfo",
    "TrainState",
    "load_optimizer_tensors",
    "load_rng_tensors",
    "optimizer_tensors",
    "rng_tensors",
]

_PROTECTED = "protected"
_STEP = re.compile(r"step-(\d{9,})")
_BEST = re.compile(r"best-(\d{9,})(?:-\d+)?")
_SLACK = 4 << 20  # bytes for headers, manifest and the file system's own blocks
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CheckpointError(GladiusError):
    """A checkpoint can't be written, or does not verify."""


class OutOfSpace(CheckpointError):
    """The disk has no room for the next checkpoint; the former ones are as they were."""


class NonFinite(CheckpointError):
    """The state holds NaN or an infinity, and is not published."""


class SavedInfo(msgspec.Struct, frozen=True):
    """A checkpoint that lies on disk, verified."""

    path: Path
    bytes: int
    seconds: float


class CheckpointInfo(msgspec.Struct, frozen=True):
    """A checkpoint that is there (not verified)."""

    step: int
    path: Path
    protected: bool


OnReject = Callable[[Path, str, Path | None], None]
"""Told the path of a rejected checkpoint, why, and where it was moved (None: it would not move)."""


def _nothing() -> None:
    """The beat of a caller that has none."""


class CheckpointStore:
    """The checkpoints of one root.

    keep: newest full checkpoints that stay (at least 2). keep_best: keep the best weights too.
    beat: called every few MiB of reading and writing, which takes minutes for a large student.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        keep_best: bool = True,
        beat: Callable[[], None] = _nothing,
    ) -> None:
        self.folder = folder
        self.keep = max(2, keep)
        self.keep_best = keep_best
        self.beat = beat

    def save(
        self,
        state: TrainState,
        *,
        config_json: bytes,
        config_digest: str,
        reason: str = "interval",
        protect: bool = False,
    ) -> SavedInfo:
        """Write, publish and verify the checkpoint of `state.step`, then remove older ones.

        A step that is there and verifies is never written over: it is returned as it is. One that
        does not is moved aside first. protect: it stays, in place of the one protected before.

        Raises NonFinite or OutOfSpace before anything is written, OutOfSpace or CheckpointError
        when writing fails; the former checkpoints are then whole and nothing of this one is left.
        """
        began = time.monotonic()
        final = self.folder / f"step-{state.step:09d}"
        manifest = self._existing(final, state.step)
        if manifest is None:
            _refuse_non_finite({"model": state.model_state, "optimizer": state.optimizer})
            content = {
                MODEL: state.model_state,
                OPTIMIZER: state.optimizer,
                RNG: state.rng,
                STATE: _encode_state(state),
                CONFIG: config_json,
            }
            with self._unfinished(final, content) as temporary:
                files = self._write(temporary, content)
                if protect:
                    (temporary / _PROTECTED).touch()
                manifest = _describe("full", state, reason, None, config_digest, files)
                self._publish(temporary, final, manifest)
        elif protect:
            workspace.write_bytes(final / _PROTECTED, b"")
        self._prune(state.step)
        return _saved(final, manifest, began)

    def save_best(
        self, state: TrainState, *, config_json: bytes, config_digest: str, score: float
    ) -> SavedInfo | None:
        """Keep the weights of `state` as the best ones (lowest score), without a full checkpoint.

        They are there, verified, before the former ones are removed. None when keep_best is off.
        Raises as save() does.
        """
        if not self.keep_best:
            return None
        began = time.monotonic()
        _refuse_non_finite({"model": state.model_state})
        final = self._free_path(f"best-{state.step:09d}")
        content = {MODEL: state.model_state, CONFIG: config_json}
        with self._unfinished(final, content) as temporary:
            files = self._write(temporary, content)
            manifest = _describe("weights", state, "best", score, config_digest, files)
            self._publish(temporary, final, manifest)
        self._remove_former_bests(final)
        return _saved(final, manifest, began)

    def load_newest(
        self, on_reject: OnReject, up_to: int | None = None
    ) -> tuple[TrainState, Manifest] | None:
        """The newest checkpoint that verifies (of step `up_to` or before), or None.

        What does not verify is moved aside to rejected-..., reported, and never deleted.
        """
        for info in reversed(self.list()):
            if up_to is not None and info.step > up_to:
                continue
            try:
                manifest = verify(info.path, self.beat, info.step)
                return _read(info.path, manifest), manifest
            except (Broken, OSError) as error:
                moved = None
                with suppress(CheckpointError):  # a read-only folder: reported all the same
                    moved = self._move_aside(info.path, "rejected")
                on_reject(info.path, str(error), moved)
        return None

    def load(self, which: int | Literal["best"] | Path) -> tuple[TrainState, Manifest]:
        """One checkpoint: of a step, the best weights, or in a folder.

        The best ones come without optimizer, scalars and rng. Raises MissingError when it is not
        there and CheckpointError when it does not verify; nothing is moved.
        """
        path = self.find(which)
        try:
            manifest = verify(path, self.beat)
            return _read(path, manifest), manifest
        except (Broken, OSError) as error:
            raise _damaged(path, error) from error

    def read_config(self, which: int | Literal["best"] | Path) -> bytes:
        """The RunConfig (JSON) that a checkpoint was made with; raises as load() does."""
        path = self.find(which)
        try:
            data = (path / CONFIG).read_bytes()
            if hashlib.sha256(data).hexdigest() != read_manifest(path).files[CONFIG].sha256:
                raise Broken(f"{CONFIG} is damaged (its SHA-256 differs)")
        except (Broken, OSError) as error:
            raise _damaged(path, error) from error
        return data

    def list(self) -> list[CheckpointInfo]:
        """The full checkpoints that are there, oldest first; not verified."""
        found = (
            CheckpointInfo(int(match[1]), path, (path / _PROTECTED).exists())
            for path, match in self._folders(_STEP)
        )
        return sorted(found, key=lambda info: info.step)

    def set_aside_after(self, step: int) -> None:
        """Take the checkpoints after `step` out of the way, because their steps are done again.

        For a rollback, and for going on from before a decay. They are deleted after the next
        save. Raises CheckpointError when one can't be moved: loading it later would be wrong.
        """
        for info in self.list():
            if info.step > step:
                self._move_aside(info.path, "superseded")

    def remove_temporaries(self) -> None:
        """Delete what a crash left unfinished (call it under the job's lock)."""
        for path in self.folder.glob(".tmp-*"):
            workspace.remove_entry(path)

    def _existing(self, final: Path, step: int) -> Manifest | None:
        """The manifest of a step that is there and verifies; a broken one is moved aside."""
        if not os.path.lexists(final):
            return None
        try:
            return verify(final, self.beat, step)
        except (Broken, OSError):
            self._move_aside(final, "rejected")
            return None

    @contextmanager
    def _unfinished(self, final: Path, content: dict[str, Any]) -> Iterator[Path]:
        """A temporary folder on the same file system, with room for `content`; gone on failure."""
        temporary = self.folder / f".tmp-{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_without_space(sum(map(_content_bytes, content.values())))
            workspace.remove_entry(temporary)
            temporary.mkdir()
            yield temporary
        except BaseException as error:
            with suppress(OSError):  # the error that led here says more
                workspace.remove_entry(temporary)
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL_DISK:
                raise OutOfSpace(
                    f"the disk of {self.folder} ran full while {final.name} was written; "
                    "make room, then resume"
                ) from error
            raise CheckpointError(f"can't write {final}: {error}") from error

    def _write(self, temporary: Path, content: dict[str, Any]) -> dict[str, FileRecord]:
        """Files of tensors and of bytes, durable, with what was meant to be in them."""
        return {
            name: write_file(temporary / name, [data], self.beat)
            if isinstance(data, bytes)
            else write_tensors(temporary / name, data, self.beat)
            for name, data in content.items()
        }

    def _publish(self, temporary: Path, final: Path, manifest: Manifest) -> None:
        """Manifest last, rename, and read all of it back from the disk."""
        write_file(temporary / MANIFEST, [encode_manifest(manifest)])
        workspace.publish_dir(temporary, final)
        try:
            verify(final, self.beat, manifest.step, from_disk=True)
        except Broken as error:
            moved = self._move_aside(final, "rejected")
            raise CheckpointError(
                f"{final.name} was read back otherwise than written ({error}) and moved to "
                f"{moved.name}; check the disk"
            ) from error

    def _remove_former_bests(self, kept: Path) -> None:
        for path, _ in self._folders(_BEST):
            if path != kept:
                self._remove(path)

    def _prune(self, step: int) -> None:
        """Remove what the checkpoint of `step`, just saved, makes needless; retried at the next.

        Only what is a checkpoint by its manifest counts among those kept: beside a broken or
        foreign folder there must still be enough good ones.
        """
        infos = [i for i in self.list() if i.step <= step and _has_manifest(i.path)]
        protected = [info for info in infos if info.protected]
        kept = {info.path for info in (*infos[-self.keep :], *protected[-1:])}
        with suppress(OSError):
            for info in protected[:-1]:
                (info.path / _PROTECTED).unlink()
            for info in infos:
                if info.path not in kept:
                    self._remove(info.path)
            self._remove_superseded()

    def _remove_superseded(self) -> None:
        for path in self.folder.glob("superseded-*"):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Delete a folder; a crash in the middle leaves a temporary one, not half a checkpoint."""
        doomed = self._free_path(f".tmp-old-{path.name}")
        os.rename(path, doomed)
        workspace.remove_entry(doomed)

    def _move_aside(self, path: Path, why: str) -> Path:
        target = self._free_path(f"{why}-{path.name}")
        try:
            os.rename(path, target)
            workspace.fsync_dir(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"can't move {path} to {target.name}: {error.strerror}; make its folder writable"
            ) from error
        return target

    def _free_path(self, name: str) -> Path:
        """`name` in this folder, or with -2, -3, ... where it is taken."""
        path, number = self.folder / name, 2
        while os.path.lexists(path):
            path, number = self.folder / f"{name}-{number}", number + 1
        return path

    def _refuse_without_space(self, size: int) -> None:
        needed = size + _SLACK
        if shutil.disk_usage(self.folder).free < needed:
            # Their successor is not written yet, but what the run went back to was just loaded.
            with suppress(OSError):
                self._remove_superseded()
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OutOfSpace(
                f"the next checkpoint needs {needed / 2**30:.2f} GiB and the disk of "
                f"{self.folder} has {free / 2**30:.2f} GiB free; make room, then resume"
            )

    def find(self, which: int | Literal["best"] | Path) -> Path:
        """The folder of a step, of the best weights, or itself; MissingError if it isn't there."""
        if isinstance(which, Path):
            path = which
        elif which == "best":
            # Two are there when a crash came before the former one was removed.
            bests = [path for path, _ in self._folders(_BEST)]
            path = min(bests, key=_best_order, default=self.folder / "best-*")
        else:
            path = self.folder / f"step-{which:09d}"
        if not path.is_dir():
            steps = ", ".join(str(info.step) for info in self.list()) or "none"
            raise MissingError(f"there is no checkpoint {path}; there are steps: {steps}")
        return path

    def _folders(self, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
        """Folders, not links to any, with a name that is wholly of `pattern`."""
        if self.folder.is_dir():
            for path in sorted(self.folder.iterdir()):
                match = pattern.fullmatch(path.name)
                if match and path.is_dir() and not path.is_symlink():
                    yield path, match


def _best_order(path: Path) -> tuple[float, float]:
    """Lowest score first, then the latest; what can't be read last."""
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


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({error}); choose another checkpoint")


def _describe(
    kind: Literal["full", "weights"],
    state: TrainState,
    reason: str,
    score: float | None,
    config_digest: str,
    files: dict[str, FileRecord],
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


def _content_bytes(data: bytes | dict[str, Tensor]) -> int:
    return len(data) if isinstance(data, bytes) else tensors_bytes(data)


def _encode_state(state: TrainState) -> bytes:
    """Step, tokens and scalars as JSON; NonFinite for a number that JSON has no word for."""
    plain = {"step": state.step, "tokens_seen": state.tokens_seen, "scalars": state.scalars}
    try:
        return json.dumps(plain, allow_nan=False).encode()
    except ValueError as error:
        raise NonFinite(f"the training state is not saved: {error}") from error


def _read(path: Path, manifest: Manifest) -> TrainState:
    """The state in a folder that has just been verified."""
    state = TrainState(manifest.step, manifest.tokens_seen, read_tensors(path / MODEL))
    if manifest.kind == "full":
        state.optimizer = read_tensors(path / OPTIMIZER)
        state.rng = read_tensors(path / RNG)
        state.scalars = json.loads((path / STATE).read_bytes())["scalars"]
    return state


def _refuse_non_finite(parts: dict[str, dict[str, Tensor]]) -> None:
    for part, tensors in parts.items():
        name = first_non_finite(tensors)
        if name is not None:
            raise NonFinite(
                f"the {part}'s {name} holds numbers that are not finite; no checkpoint is made, "
                "resume goes on from the former one"
            )
