"""Write and hash the files of checkpoints and models in pieces. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from engine.workspace import write_new_file

_PIECE = 8 << 20  # bytes between two heartbeats


class FileRecord(msgspec.Struct, frozen=True):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


def no_heartbeat() -> None:
    """Does nothing; the default of arguments that report progress."""


def record_of(data: bytes) -> FileRecord:
    """The record of a small file's content."""
    return FileRecord(len(data), hashlib.sha256(data).hexdigest())


def file_record(path: Path) -> FileRecord:
    """The record of a file; raises OSError."""
    return FileRecord(path.stat().st_size, hash_file(path))


def write_file(
    path: Path, pieces: Iterable[bytes | memoryview], heartbeat: Callable[[], None] = no_heartbeat
) -> FileRecord:
    """Write a new file durably; the digest is of the bytes passed in, not of those on disk."""
    digest, size = hashlib.sha256(), 0

    def parts() -> Iterator[memoryview]:
        nonlocal size
        for piece in map(memoryview, pieces):
            for start in range(0, len(piece), _PIECE):
                part = piece[start : start + _PIECE]
                digest.update(part)
                size += len(part)
                yield part
                heartbeat()

    write_new_file(path, parts())
    return FileRecord(size, digest.hexdigest())


def hash_file(
    path: Path, heartbeat: Callable[[], None] = no_heartbeat, *, from_disk: bool = False
) -> str:
    """SHA-256 of a file; `from_disk`: drop it from the page cache first, where possible."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := os.read(descriptor, _PIECE):
            digest.update(piece)
            heartbeat()
    finally:
        os.close(descriptor)
    return digest.hexdigest()
