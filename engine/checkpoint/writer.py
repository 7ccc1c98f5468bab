"""Writing one checkpoint folder: into a temporary one, renamed when complete, then read back."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from engine import workspace
from engine.checkpoint.errors import CheckpointError, NonFinite, OutOfSpace
from engine.checkpoint.folders import CheckpointFolders
from engine.checkpoint.hashing import FileRecord, write_file
from engine.checkpoint.layout import MANIFEST, REJECTED, TEMPORARY
from engine.checkpoint.manifest import Broken, Manifest, encode_manifest, verify
from engine.checkpoint.tensor_files import first_non_finite, tensors_bytes, write_tensors
from engine.checkpoint.train_state import TrainState

_SLACK = 4 << 20
"""Bytes for headers, the manifest and the file system's own blocks."""
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Content = Mapping[str, bytes | dict[str, Tensor]]
"""Files of a checkpoint by name: bytes, or named tensors."""


class CheckpointWriter:
    """Writes checkpoint folders; `heartbeat` is called every few MiB."""

    def __init__(self, folders: CheckpointFolders, heartbeat: Callable[[], None]) -> None:
        self._folders = folders
        self._heartbeat = heartbeat

    @contextmanager
    def temporary(self, final: Path, content: Content) -> Iterator[Path]:
        """A temporary folder for `final`, on the same file system; deleted when the block fails.

        Raises OutOfSpace when there is no room for `content`, CheckpointError for other failures
        to write.
        """
        folder = self._folders.root / f"{TEMPORARY}{final.name}"
        try:
            self._folders.root.mkdir(parents=True, exist_ok=True)
            self._require_space(sum(map(_content_bytes, content.values())))
            workspace.remove_entry(folder)
            folder.mkdir()
            yield folder
        except BaseException as error:
            with suppress(OSError):  # the first error is the one to report
                workspace.remove_entry(folder)
            if not isinstance(error, OSError):
                raise
            if error.errno in _FULL_DISK:
                raise OutOfSpace(
                    f"the disk of {self._folders.root} ran full while {final.name} was written; "
                    "make room, then resume"
                ) from error
            raise CheckpointError(f"can't write {final}: {error}") from error

    def write(self, folder: Path, content: Content) -> dict[str, FileRecord]:
        """Write the files durably; returns sizes and hashes of what was meant to be written."""
        for parent in {(folder / name).parent for name in content} - {folder}:
            parent.mkdir(exist_ok=True)
        return {
            name: write_file(folder / name, [data], self._heartbeat)
            if isinstance(data, bytes)
            else write_tensors(folder / name, data, self._heartbeat)
            for name, data in content.items()
        }

    def publish(self, folder: Path, final: Path, manifest: Manifest) -> None:
        """Write the manifest, rename to `final`, and read everything back from the disk.

        Raises CheckpointError when what is read back differs from what was written.
        """
        write_file(folder / MANIFEST, [encode_manifest(manifest)])
        workspace.publish_dir(folder, final)
        try:
            verify(final, self._heartbeat, manifest.step, from_disk=True)
        except Broken as error:
            moved = self._folders.move_aside(final, REJECTED)
            raise CheckpointError(
                f"{final.name} does not match what was written ({error}) and was moved to "
                f"{moved.name}; check the disk"
            ) from error

    def _require_space(self, size: int) -> None:
        needed = size + _SLACK
        root = self._folders.root
        if shutil.disk_usage(root).free < needed:
            # The checkpoint that the run went back to was just loaded, so these can go already.
            with suppress(OSError):
                self._folders.remove_superseded()
        free = shutil.disk_usage(root).free
        if free < needed:
            raise OutOfSpace(
                f"the next checkpoint needs {needed / 2**30:.2f} GiB and the disk of {root} has "
                f"{free / 2**30:.2f} GiB free; make room, then resume"
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def encode_state(state: TrainState) -> bytes:
    """Step, tokens and scalars as JSON; raises NonFinite for NaN and infinity."""
    plain = {"step": state.step, "tokens_seen": state.tokens_seen, "scalars": state.scalars}
    try:
        return json.dumps(plain, allow_nan=False).encode()
    except ValueError as error:
        raise NonFinite(f"the training state is not saved: {error}") from error


def require_finite(parts: Mapping[str, dict[str, Tensor]]) -> None:
    """Raise NonFinite when a tensor of a part holds NaN or infinity."""
    for part, tensors in parts.items():
        name = first_non_finite(tensors)
        if name is not None:
            raise NonFinite(
                f"the {part}'s {name} holds numbers that are not finite; no checkpoint is saved, "
                "resume continues from the previous one"
            )


def _content_bytes(data: bytes | dict[str, Tensor]) -> int:
    return len(data) if isinstance(data, bytes) else tensors_bytes(data)
