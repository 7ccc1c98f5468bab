"""Shards on disk that hold text blocks with their sparse soft targets, and the manifest over them.

The manifest carries the ShardKey: shards that were made for another corpus, expert, tokenizer or
setting are never reused.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine.distill.align.blocks import EncodedBlock
from engine.distill.teacher.sparse_targets import BlockTargets, TargetBatch
from engine.small_files import BAD_JSON, Damaged, read_json
from engine.workspace import fsync_dir, sha256_file, write_json

SHARD_VERSION = 1


class ShardKey(msgspec.Struct, frozen=True):
    """Everything that the content of a folder of shards depends on."""

    corpus: str
    expert: str
    expert_digest: str
    teacher_tokenizer: str
    student_tokenizer: str
    temperature: float
    top_k: int
    draws: int
    epochs: int
    min_mass: float
    seed: int
    precision: str
    version: int = SHARD_VERSION

    @property
    def digest(self) -> str:
        """Name of the folder of these shards (16 hex digits)."""
        text = "\n".join(f"{field}={getattr(self, field)}" for field in self.__struct_fields__)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class ShardInfo(msgspec.Struct, frozen=True):
    """One shard as the manifest lists it."""

    file: str
    blocks: int
    sha256: str


def write_shard(path: Path, scored: Sequence[BlockTargets], student_size: int) -> ShardInfo:
    """Write a shard durably: temporary file, fsync, rename."""
    blocks = [part.block for part in scored]
    ids_type = np.uint16 if student_size <= 1 << 16 else np.int32
    arrays = {
        "student_ids": np.concatenate([b.student_ids for b in blocks]).astype(np.int32),
        "block_tokens": np.array([len(b.student_ids) for b in blocks], dtype=np.int64),
        "block_positions": np.array([len(b.student_scored) for b in blocks], dtype=np.int64),
        "block_bytes": np.array([b.text_bytes for b in blocks], dtype=np.int64),
        "scored": np.concatenate([b.student_scored for b in blocks]).astype(np.int32),
        "is_end": np.concatenate([b.is_end for b in blocks]),
        **{
            name: np.concatenate([getattr(part, name) for part in scored]).astype(np.float32)
            for name in ("weight", "residual", "entropy", "tail", "top_mass")
        },
        **{
            name: np.concatenate([getattr(part, name) for part in scored]).astype(ids_type)
            for name in ("top_ids", "draws")
        },
    }
    nats = [part.teacher_nats for part in scored if part.teacher_nats is not None]
    if len(nats) == len(scored):
        arrays["block_teacher_nats"] = np.array(nats, dtype=np.float64)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    info = ShardInfo(file=path.name, blocks=len(blocks), sha256=sha256_file(temporary))
    temporary.rename(path)
    fsync_dir(path.parent)
    return info


class TargetStore:
    """Scored blocks in a folder of shards, with a manifest.

    Shards are written one by one and listed in the manifest, so that an interrupted scoring
    resumes at the next shard. Files are memory-mapped: a batch reads only its own blocks.

    Attributes:
        shards: the shards that can be used.
        complete: whether all of the corpus is scored.
        meta: statistics of the text, stored when it is complete.
    """

    def __init__(self, folder: Path, key: ShardKey) -> None:
        self.folder = folder
        self.key = key
        self._manifest = folder / "manifest.json"
        self.shards: list[ShardInfo] = []
        self._files: list[_Shard] = []
        self._first: np.ndarray = np.zeros(1, dtype=np.int64)
        self.complete = False
        self.meta: dict[str, Any] = {}

    def open(self) -> int:
        """Read and verify the manifest and its shards; returns the number of usable shards.

        Removes temporary files of a killed writer.
        """
        self.shards, self.complete, self.meta = [], False, {}
        for leftover in self.folder.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        try:
            manifest = read_json(self._manifest)
            known = msgspec.convert(manifest["key"], ShardKey)
            shards = msgspec.convert(manifest["shards"], list[ShardInfo])
            meta = msgspec.convert(manifest.get("meta", {}), dict[str, Any])
        except (OSError, Damaged, *BAD_JSON, KeyError, TypeError, AttributeError):
            return 0
        if known != self.key:
            return 0
        for info in shards:
            path = self.folder / Path(info.file).name
            if not path.is_file() or sha256_file(path) != info.sha256:
                return self._map_files()
            self.shards.append(info)
        self.complete = bool(manifest.get("complete"))
        self.meta = meta
        return self._map_files()

    def add(self, scored: Sequence[BlockTargets], student_size: int) -> None:
        """Write the next shard and list it in the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        self.shards.append(write_shard(path, scored, student_size))
        self._save()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Mark the corpus as completely scored, store `meta`, and open the shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.complete = True
        self.meta = dict(meta)
        self._save()
        self._map_files()

    def _save(self) -> None:
        write_json(self._manifest, manifest_of(self))

    def _map_files(self) -> int:
        try:
            self._files = [_Shard(self.folder / info.file) for info in self.shards]
        except (OSError, SafetensorError):
            self.shards, self._files, self.complete = [], [], False
        counts = [info.blocks for info in self.shards]
        self._first = np.cumsum([0, *counts])
        return len(self.shards)

    def __len__(self) -> int:
        return int(self._first[-1])

    def _locate(self, block: int) -> tuple[_Shard, int]:
        shard = int(np.searchsorted(self._first, block, side="right")) - 1
        return self._files[shard], block - int(self._first[shard])

    def block(self, index: int) -> EncodedBlock:
        """The student's tokens of a block."""
        shard, at = self._locate(index)
        return shard.block(at)

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        return np.concatenate([f.block_tokens for f in self._files] or [np.zeros(0, np.int64)])

    def targets(self, blocks: Sequence[int], epoch: int) -> TargetBatch:
        """Targets of the blocks' scored positions, one block after the other.

        Each epoch uses its own slice of the draws.
        """
        ids, mass, weight, entropy = [], [], [], []
        for block in blocks:
            shard, at = self._locate(block)
            part = shard.targets(at, epoch % self.key.epochs)
            for array, into in zip(part, (ids, mass, weight, entropy), strict=True):
                into.append(array)
        return TargetBatch(
            ids=torch.from_numpy(np.concatenate(ids)),
            mass=torch.from_numpy(np.concatenate(mass)),
            weight=torch.from_numpy(np.concatenate(weight)),
            entropy=torch.from_numpy(np.concatenate(entropy)),
            top_k=ids[0].shape[1] - self.key.draws,
        )

    def teacher_bits_per_byte(self, blocks: Sequence[int] | None = None) -> float | None:
        """The expert's bits per byte on these blocks (None: all); None where a shard lacks them."""
        nats, text_bytes = 0.0, 0
        for block in range(len(self)) if blocks is None else blocks:
            shard, at = self._locate(block)
            if shard.teacher_nats is None:
                return None
            nats += float(shard.teacher_nats[at])
            text_bytes += shard.block(at).text_bytes
        return nats / math.log(2) / text_bytes if text_bytes else None

    def column(self, name: str) -> Iterator[np.ndarray]:
        """A per-position column, shard by shard (for metrics)."""
        for file in self._files:
            yield file.column(name)


def manifest_of(store: TargetStore) -> dict[str, Any]:
    """The content of a store's manifest, as plain data."""
    content = {
        "key": store.key,
        "shards": store.shards,
        "complete": store.complete,
        "meta": store.meta,
    }
    return msgspec.json.decode(msgspec.json.encode(content))


_SLICED = (
    "student_ids",
    "scored",
    "is_end",
    "weight",
    "entropy",
    "tail",
    "top_ids",
    "top_mass",
    "draws",
)
"""Arrays of a shard that are read block by block."""


class _Shard:
    """One memory-mapped shard file."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="np")
        self.block_tokens = self.column("block_tokens")
        self._bytes = self.column("block_bytes")
        name = "block_teacher_nats"
        self.teacher_nats = self.column(name) if name in self._file.keys() else None  # noqa: SIM118
        self._tokens = np.cumsum([0, *self.block_tokens])
        self._positions = np.cumsum([0, *self.column("block_positions")])
        self._slices = {name: self._file.get_slice(name) for name in _SLICED}

    def column(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def block(self, block: int) -> EncodedBlock:
        a, b = self._tokens[block : block + 2]
        c, d = self._positions[block : block + 2]
        return EncodedBlock(
            ids=self._slices["student_ids"][a:b].astype(np.int64),
            scored=self._slices["scored"][c:d].astype(np.int64),
            is_end=self._slices["is_end"][c:d],
            text_bytes=int(self._bytes[block]),
        )

    def targets(self, block: int, epoch: int) -> tuple[np.ndarray, ...]:
        a, b = self._positions[block : block + 2]
        read = {name: self._slices[name][a:b] for name in ("top_ids", "top_mass", "tail")}
        draws = self._slices["draws"][a:b, epoch]
        each = np.repeat(read["tail"][:, None] / draws.shape[1], draws.shape[1], axis=1)
        return (
            np.concatenate([read["top_ids"], draws], axis=1).astype(np.int64),
            np.concatenate([read["top_mass"], each], axis=1),
            self._slices["weight"][a:b],
            self._slices["entropy"][a:b],
        )
