"""Owns sparse soft targets in the student's vocabulary: how they are drawn from a projection, and
the shards on disk that hold them.

It does not own the projection (`projection`) nor which text is scored (`corpus`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from engine.distill.align.blocks import TextBlock
from engine.distill.align.projection import Projected
from engine.workspace import fsync_dir, sha256_file, write_json

SHARD_VERSION = 1


@dataclass
class TargetBatch:
    """Soft targets of N scored positions: sum over the entries of `mass` is 1 where weight > 0.

    Attributes:
        ids: (N, K) int64 student tokens; one token may stand several times (draws).
        mass: (N, K) float32, q_T of the top entries, tail mass / m for each draw.
        weight: (N,) float32, w; 0 where there is no soft target.
        entropy: (N,) float32, of q_T in nats.
        top_k: the first top_k entries are exact, the others are draws.
    """

    ids: Tensor
    mass: Tensor
    weight: Tensor
    entropy: Tensor
    top_k: int

    def to(self, device: torch.device) -> TargetBatch:
        return TargetBatch(
            ids=self.ids.to(device),
            mass=self.mass.to(device),
            weight=self.weight.to(device),
            entropy=self.entropy.to(device),
            top_k=self.top_k,
        )


def temper(q: Tensor, temperature: float) -> Tensor:
    """q_T proportional to q^(1/T) along the first axis; columns of zeros stay zeros."""
    if temperature == 1.0:
        return q
    powered = q.sqrt() if temperature == 2.0 else q.pow(1.0 / temperature)
    return powered.div_(powered.sum(0, keepdim=True).clamp_min(1e-30))


@dataclass(frozen=True)
class SparseTargets:
    """What a shard keeps of a chunk of positions, (n, ...): see TargetStore for the fields."""

    top_ids: Tensor
    top_mass: Tensor
    tail: Tensor
    draws: Tensor
    entropy: Tensor


def sparsify(
    q_t: Tensor, top_k: int, draws: int, epochs: int, generator: torch.Generator
) -> SparseTargets:
    """Keeps the top_k entries of q_T exactly and draws from the rest in proportion to it.

    Args:
        q_t: (V_s, n) tempered distribution in columns.
        draws, epochs: draws per epoch, and epochs whose draws are kept.

    The draws of an epoch are stratified (one in each of `draws` equal slices of the tail's mass),
    so that each token's expected count is draws * q_T / tail and the noise is smaller than that of
    independent draws (sparse logit sampling: arXiv 2503.16870).
    """
    rows = q_t.t().contiguous()
    n, size = rows.shape
    k = min(top_k, size)
    top_mass, top_ids = rows.topk(k, dim=1)
    entropy = -torch.special.xlogy(rows, rows).sum(1)
    rest = rows.scatter(1, top_ids, 0.0)
    cumulative = rest.cumsum(1, dtype=torch.float32)
    tail = cumulative[:, -1].clone()
    noise = torch.rand((n, epochs, draws), generator=generator, device="cpu").to(rows.device)
    slices = (torch.arange(draws, device=rows.device) + noise) / draws
    levels = (slices * tail[:, None, None]).reshape(n, epochs * draws)
    picked = torch.searchsorted(cumulative, levels, right=True).clamp_max(size - 1)
    # rounding may land a draw past the last token that has mass
    last = (rest > 0).long().mul_(torch.arange(size, device=rows.device)).amax(1, keepdim=True)
    picked = torch.minimum(picked, last)
    return SparseTargets(
        top_ids=top_ids,
        top_mass=top_mass,
        tail=tail,
        draws=picked.reshape(n, epochs, draws),
        entropy=entropy,
    )


class ShardKey(msgspec.Struct, frozen=True):
    """What a folder of shards depends on; one that does not match is made anew, never reused."""

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


class ShardInfo(msgspec.Struct, frozen=True):
    """One shard in the manifest."""

    file: str
    blocks: int
    sha256: str


@dataclass
class BlockTargets:
    """A scored block, in host memory, as the shards keep it (N positions)."""

    block: TextBlock
    weight: np.ndarray
    residual: np.ndarray
    entropy: np.ndarray
    tail: np.ndarray
    top_ids: np.ndarray
    top_mass: np.ndarray
    draws: np.ndarray
    teacher_nats: float | None = None
    """-log p of the text by the expert in its own tokens, without ends of turn; None: not kept."""


def collect(
    parts: Sequence[tuple[Projected, SparseTargets]], positions: int
) -> dict[str, np.ndarray]:
    """The chunks of a projection put back in the order of the text, as arrays of N rows."""
    index = torch.cat([projected.index for projected, _ in parts]).cpu()
    order = torch.empty_like(index)
    order[index] = torch.arange(positions)
    columns = {
        "weight": [p.weight for p, _ in parts],
        "residual": [p.residual for p, _ in parts],
        "entropy": [s.entropy for _, s in parts],
        "tail": [s.tail for _, s in parts],
        "top_ids": [s.top_ids for _, s in parts],
        "top_mass": [s.top_mass for _, s in parts],
        "draws": [s.draws for _, s in parts],
    }
    return {name: torch.cat(c).cpu()[order].numpy() for name, c in columns.items()}


def in_memory_targets(parts: Sequence[BlockTargets], epoch: int) -> TargetBatch:
    """Targets of the blocks' scored positions, one block after the other, as a shard gives them."""
    ids, mass = [], []
    for part in parts:
        draws = part.draws[:, epoch % part.draws.shape[1]]
        each = np.repeat(part.tail[:, None] / draws.shape[1], draws.shape[1], axis=1)
        ids.append(np.concatenate([part.top_ids, draws], axis=1).astype(np.int64))
        mass.append(np.concatenate([part.top_mass, each], axis=1).astype(np.float32))
    return TargetBatch(
        ids=torch.from_numpy(np.concatenate(ids)),
        mass=torch.from_numpy(np.concatenate(mass)),
        weight=torch.from_numpy(np.concatenate([p.weight for p in parts]).astype(np.float32)),
        entropy=torch.from_numpy(np.concatenate([p.entropy for p in parts]).astype(np.float32)),
        top_k=parts[0].top_ids.shape[1],
    )


def write_shard(path: Path, scored: Sequence[BlockTargets], student_size: int) -> ShardInfo:
    """Writes a shard durably: temporary file, fsync, rename."""
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


@dataclass(frozen=True)
class EncodedBlock:
    """A block as the trainer reads it, targets still on disk or in a mapped file.

    Attributes:
        ids: (S,) int64; scored: (N,) indices of the scored tokens; is_end: (N,) bool.
    """

    ids: np.ndarray
    scored: np.ndarray
    is_end: np.ndarray
    text_bytes: int


class TargetStore:
    """Scored blocks in a folder of shards, with a manifest.

    Shards are written one by one and registered in the manifest, so that an interrupted scoring
    goes on at the shard where it stopped. Reading maps the files: only what a batch needs is read.
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
        """Reads what is there and verifies it; returns the number of shards that can be used.

        What a killed writer left behind is removed.
        """
        self.shards, self.complete, self.meta = [], False, {}
        for leftover in self.folder.glob(".tmp-*"):
            leftover.unlink(missing_ok=True)
        try:
            manifest = json.loads(self._manifest.read_bytes())
            known = msgspec.convert(manifest["key"], ShardKey)
            shards = msgspec.convert(manifest["shards"], list[ShardInfo])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if known != self.key:
            return 0
        for info in shards:
            path = self.folder / Path(info.file).name
            if not path.is_file() or sha256_file(path) != info.sha256:
                return self._use()
            self.shards.append(info)
        self.complete = bool(manifest.get("complete"))
        self.meta = manifest.get("meta", {})
        return self._use()

    def add(self, scored: Sequence[BlockTargets], student_size: int) -> None:
        """Writes the next shard and registers it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        self.shards.append(write_shard(path, scored, student_size))
        self._save()

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Says that all of the corpus is scored, keeps `meta` with it, and opens the shards."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.complete = True
        self.meta = dict(meta)
        self._save()
        self._use()

    def _save(self) -> None:
        write_json(
            self._manifest,
            {
                "key": msgspec.to_builtins(self.key),
                "shards": msgspec.to_builtins(self.shards),
                "complete": self.complete,
                "meta": self.meta,
            },
        )

    def _use(self) -> int:
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

    def row(self, block: int) -> EncodedBlock:
        shard, at = self._locate(block)
        return shard.row(at)

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        return np.concatenate([f.block_tokens for f in self._files] or [np.zeros(0, np.int64)])

    def targets(self, blocks: Sequence[int], epoch: int) -> TargetBatch:
        """Targets of the blocks' scored positions, one block after the other.

        Another slice of the draws is used each epoch.
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
        """The expert's own bits per byte on these blocks (None: all); None: a shard can't tell."""
        nats, text_bytes = 0.0, 0
        for block in range(len(self)) if blocks is None else blocks:
            shard, at = self._locate(block)
            if shard.teacher_nats is None:
                return None
            nats += float(shard.teacher_nats[at])
            text_bytes += shard.row(at).text_bytes
        return nats / math.log(2) / text_bytes if text_bytes else None

    def column(self, name: str) -> Iterator[np.ndarray]:
        """A whole per-position column, shard by shard (for the run's metrics)."""
        for file in self._files:
            yield file.whole(name)


class _Shard:
    """One shard file, mapped."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="np")
        self.block_tokens = self.whole("block_tokens")
        self._bytes = self.whole("block_bytes")
        name = "block_teacher_nats"
        self.teacher_nats = self.whole(name) if name in self._file.keys() else None  # noqa: SIM118
        self._tokens = np.cumsum([0, *self.block_tokens])
        self._positions = np.cumsum([0, *self.whole("block_positions")])
        self._slices = {
            name: self._file.get_slice(name)
            for name in (
                *("student_ids", "scored", "is_end"),
                *("weight", "entropy", "tail", "top_ids", "top_mass", "draws"),
            )
        }

    def whole(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def row(self, block: int) -> EncodedBlock:
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
