"""The seal of a run: digests of everything that its later steps depend on. Imports no torch.

It is written before the first step and copied into each checkpoint. On resume everything is
compared with it: what can be restored or rebuilt is, any other difference is named.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.checkpoint.hashing import FileRecord, hash_file, no_heartbeat
from engine.small_files import Damaged, decode_signed, encode_signed, read_bytes

_FORMAT = 1
_BY_LINE_BYTES = 16 << 20
"""Files up to this size are compared line by line, larger ones in pieces of whole bytes."""
_MAX_PIECES = 4096
_MIN_PIECE = 1 << 20
_READ = 1 << 20


class TextSeal(msgspec.Struct, frozen=True):
    """A file of training text."""

    bytes: int
    sha256: str
    pieces: str
    """CRC-32 of each piece, 8 hex digits each: tells which lines have changed."""


class ExpertSeal(msgspec.Struct, frozen=True):
    """An expert: its settings and the files that it is loaded from."""

    identity: str
    """What names its shards and answers (`expert_digest` when the run began)."""
    settings: dict[str, Any]
    files: dict[str, FileRecord]


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The content of seal.json. Paths inside the root are stored as below `root`."""

    format: int = _FORMAT
    run_id: str
    root: str
    """The root's path when the run began; a moved root is recognised by it."""
    created: float
    config_digest: str
    """Of the fields that may not change within the run."""
    versions: dict[str, str]
    tokenizer: dict[str, FileRecord]
    vocabulary: str
    """Digest of the student's vocabulary."""
    text: dict[str, TextSeal]
    """By path."""
    taken: dict[str, str]
    """By expert: digest of its text as it was read, and of the held-out part."""
    streams: dict[str, str]
    """By source: fingerprint of its streamed text."""
    experts: dict[str, ExpertSeal]
    answers: dict[str, FileRecord]
    """By expert: the file of its kept answers."""
    shards: dict[str, Any]
    """By folder below the experts' cache: the manifest of the shards."""
    projections: dict[str, str]
    """By expert: digest of its projection tables; only of experts that were loaded."""
    probes: dict[str, str]
    """By expert: digest of its distributions for the lens."""


def encode_seal(seal: Seal) -> bytes:
    """The seal as JSON that carries its own digest."""
    return encode_signed(seal)


def decode_seal(data: bytes, source: str | Path = "the seal") -> Seal:
    """The inverse; raises Damaged."""
    seal = decode_signed(data, Seal, source)
    if seal.format != _FORMAT:
        raise Damaged(source, "it was written by another version of this program")
    return seal


def read_seal(path: Path) -> Seal | None:
    """The seal in a file; None where there is none. Raises Damaged, OSError."""
    try:
        return decode_seal(read_bytes(path), path)
    except FileNotFoundError:
        return None


# Text


def seal_text(path: Path, heartbeat: Callable[[], None] = no_heartbeat) -> TextSeal:
    """Hash a file of text, and its pieces; reads the file once."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    pieces: list[int] = []
    total = 0
    for data in _pieces(path, size):
        digest.update(data)
        total += len(data)
        pieces.append(zlib.crc32(data))
        heartbeat()
    return TextSeal(total, digest.hexdigest(), "".join(f"{piece:08x}" for piece in pieces))


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """The content of a file in pieces that depend on `size` and the content only.

    Small files are cut after lines whose checksum is a multiple of a number, so that an insertion
    changes no piece but its own; large files are cut at fixed offsets.
    """
    with open(path, "rb") as file:
        if size > _BY_LINE_BYTES:
            length = _MIN_PIECE
            while size > length * _MAX_PIECES:
                length *= 2
            while data := file.read(length):
                yield data
            return
        every = max(1, size // (_MAX_PIECES * 64))
        piece = bytearray()
        for line in file:
            piece += line
            if zlib.crc32(line) % every == 0:
                yield bytes(piece)
                piece.clear()
        if piece:
            yield bytes(piece)


def changed_lines(path: Path, sealed: TextSeal) -> tuple[int, int, int]:
    """(first, last, number of lines): the lines of the present file that differ from the sealed
    one, from 1; the last is before the first where lines were only removed."""
    before = [sealed.pieces[n : n + 8] for n in range(0, len(sealed.pieces), 8)]
    # Cut like the sealed file, so that equal pieces have equal checksums.
    present = [
        (f"{zlib.crc32(p):08x}", p.count(b"\n"), p[-1:] == b"\n")
        for p in _pieces(path, sealed.bytes)
    ]
    after = [piece for piece, _, _ in present]
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    lines = [count for _, count, _ in present]
    total = sum(lines) + (1 if present and not present[-1][2] else 0)
    first = sum(lines[:start]) + 1
    last = total - (sum(lines[len(lines) - end :]) if end else 0)
    if end and present and not present[-1][2]:
        last -= 1
    return first, last, total


def text_problem(path: str, sealed: TextSeal, found: TextSeal | None) -> str | None:
    """What has changed in a file of text, in words; None if nothing has.

    found: of the present file; None if it is gone.
    """
    if found is None:
        return f"{path} is gone"
    if found.sha256 == sealed.sha256:
        return None
    first, last, total = changed_lines(Path(path), sealed)
    if last < first:
        return f"{path} has changed: lines were removed after line {first - 1:,} (of {total:,})"
    which = f"line {first:,}" if first == last else f"lines {first:,} to {last:,}"
    return f"{path} has changed: {which} (of {total:,}) differ"


# Experts

_LOADED = (".safetensors", ".json", ".jinja", ".gguf")
"""Endings of the files that an expert may be loaded from."""
_NOT_LOADED = ("manifest.json", "verified_times.json")


def expert_files(path: Path) -> list[Path]:
    """The files that an expert is loaded from: its .gguf file, or those of its folder."""
    if path.is_file():
        return [path]
    return [
        file
        for file in sorted(path.iterdir())
        if file.suffix in _LOADED and file.name not in _NOT_LOADED and file.is_file()
    ]


def seal_expert(path: Path, heartbeat: Callable[[], None] = no_heartbeat) -> dict[str, FileRecord]:
    """Size and SHA-256 of each file that an expert is loaded from, by name."""
    return {
        file.name: FileRecord(file.stat().st_size, hash_file(file, heartbeat))
        for file in expert_files(path)
    }


def files_problem(sealed: Mapping[str, FileRecord], found: Mapping[str, FileRecord]) -> str | None:
    """The first difference between two sets of files, in words; None if there is none."""
    for name, record in sealed.items():
        present = found.get(name)
        if present is None:
            return f"{name} is gone"
        if present.bytes != record.bytes:
            return f"{name} has {present.bytes:,} bytes instead of {record.bytes:,}"
        if present.sha256 != record.sha256:
            return f"{name} has changed (its SHA-256 differs)"
    added = sorted(set(found) - set(sealed))
    return f"{added[0]} was added" if added else None


def settings_problem(sealed: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first difference between two sets of settings, in words; None if there is none."""
    for name in {**sealed, **found}:
        if sealed.get(name) != found.get(name):
            return f"{name} was {sealed.get(name)!r} and is now {found.get(name)!r}"
    return None
