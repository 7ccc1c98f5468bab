"""The manifest of a checkpoint folder, and verifying the folder against it.

A single flipped bit loads silently in safetensors and torch; only a digest finds it. The manifest
holds the SHA-256 of every file and, as its last field, its own.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from engine.checkpoint.hashing import FileRecord, hash_file, record_of
from engine.checkpoint.layout import (
    CONFIG,
    EVENTS,
    JOURNAL,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    RNG,
    SEAL,
    STATE,
    TOKENIZER,
)
from engine.small_files import Damaged, decode_signed, encode_signed, read_bytes

FILES = {"full": {MODEL, OPTIMIZER, RNG, STATE, CONFIG}, "weights": {MODEL, CONFIG}}
RUN_FILES = {SEAL, JOURNAL, EVENTS}
"""Files of the run that a full checkpoint may have besides those."""
_TOKENIZER_FILE = re.compile(rf"{TOKENIZER}/[A-Za-z0-9][A-Za-z0-9._-]*")
_FORMAT = 1


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of manifest.json."""

    format: int = _FORMAT
    kind: Literal["full", "weights"]
    step: int
    tokens_seen: int
    reason: str
    score: float | None
    """Held-out bits per byte, where it was measured at this step."""
    created: float
    """Unix time in seconds."""
    config_digest: str
    threads: int
    """CPU threads of torch: results are bit-exact only for the same number."""
    versions: dict[str, str]
    files: dict[str, FileRecord]


class Broken(Exception):
    """A folder does not verify; the message has the reason."""


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON with its own digest (of all before it) as the last field."""
    return encode_signed(manifest)


def is_run_file(name: str) -> bool:
    """Whether a checkpoint's file is a copy of a small file of the run."""
    return name in RUN_FILES or _TOKENIZER_FILE.fullmatch(name) is not None


def read_manifest(folder: Path) -> Manifest:
    """A folder's manifest, its own digest checked; raises Broken."""
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise Broken("it is not a folder")
    try:
        data = read_bytes(_plain_file(folder / MANIFEST))
        manifest = decode_signed(data, Manifest, MANIFEST)
    except FileNotFoundError:
        raise Broken(f"{MANIFEST} is missing") from None
    except Damaged as error:
        raise Broken(f"{MANIFEST} is damaged ({error.reason})") from error
    names = set(manifest.files)
    required = FILES[manifest.kind]
    others = (name for name in names - required if not is_run_file(name))
    if manifest.format != _FORMAT or not required <= names or any(others):
        raise Broken(f"{MANIFEST} was written by another version of this program")
    return manifest


def read_small_file(folder: Path, name: str, manifest: Manifest) -> bytes:
    """A small file of a checkpoint, compared with its manifest; raises Broken, OSError."""
    try:
        data = read_bytes(_plain_file(folder / name))
    except Damaged as error:
        raise Broken(f"{name} is damaged ({error.reason})") from error
    if record_of(data) != manifest.files[name]:
        raise Broken(f"{name} is damaged (its SHA-256 differs)")
    return data


def verify(
    folder: Path, heartbeat: Callable[[], None], step: int | None = None, *, from_disk: bool = False
) -> Manifest:
    """Read every byte of a checkpoint and compare; raises Broken, OSError.

    step: the step in the folder's name. from_disk: bypass the page cache where possible.
    """
    manifest = read_manifest(folder)
    if step is not None and manifest.step != step:
        raise Broken(f"it holds step {manifest.step}")
    for name, record in manifest.files.items():
        path = _plain_file(folder / name)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise Broken(f"{name} is missing") from None
        if size != record.bytes:
            raise Broken(f"{name} has {size:,} bytes instead of {record.bytes:,}")
        if hash_file(path, heartbeat, from_disk=from_disk) != record.sha256:
            raise Broken(f"{name} is damaged (its SHA-256 differs)")
    return manifest


def _plain_file(path: Path) -> Path:
    """The path; raises Broken for a link, which could point anywhere, and for a non-file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if path.parent.is_symlink():
        raise Broken(f"{path.parent.name} is a link")
    if not stat.S_ISREG(mode):
        raise Broken(f"{path.name} is not a plain file")
    return path
