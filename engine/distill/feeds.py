"""Owns the order of the data: which packed rows a step trains on, as a pure function of the seed
and a cursor, and how rows become tensors.

It does not own where the blocks' targets come from (`targets`, `online`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from engine.distill.losses import SoftSource
from engine.distill.targets import Row

_OPEN_ROWS = 8
LENGTH_STEP = 64
"""Few lengths of batches: for every new one a CPU compiles its bf16 kernels anew and keeps them."""


class Source(Protocol):
    """The training blocks of one expert."""

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        ...

    def row(self, block: int) -> Row: ...

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> SoftSource:
        """Soft targets of the blocks' scored positions, one block after the other."""
        ...


class PackedRow(msgspec.Struct, frozen=True):
    """Blocks of one expert that share a row of the batch."""

    expert: str
    epoch: int
    blocks: tuple[int, ...]


class Cursor(msgspec.Struct, frozen=True):
    """Where one expert's data stands: the next row of which epoch, and the credit of its share."""

    epoch: int = 0
    row: int = 0
    credit: float = 0.0


def pack(lengths: np.ndarray, order: np.ndarray, max_seq_len: int) -> list[tuple[int, ...]]:
    """Blocks in the given order, put together in rows of at most `max_seq_len` tokens.

    Each block goes into the fullest of a few open rows that has room for it.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (tokens free, index into rows)
    for block in order.tolist():
        length = int(lengths[block])
        fitting = [(free, n) for free, n in open_rows if free >= length]
        if fitting:
            free, n = min(fitting)
            open_rows.remove((free, n))
        else:
            free, n = max_seq_len, len(rows)
            rows.append([])
        rows[n].append(block)
        open_rows.append((free - length, n))
        if len(open_rows) > _OPEN_ROWS:
            open_rows.remove(min(open_rows))
    return [tuple(row) for row in rows]


class Mixer:
    """Deals out rows: of each expert in proportion to the mix, in an order the seed decides."""

    def __init__(
        self, lengths: Mapping[str, np.ndarray], max_seq_len: int, rows_per_step: int, seed: int
    ) -> None:
        """lengths: expert to the student tokens of its blocks, (blocks,) int64."""
        self._lengths = dict(lengths)
        self._max_seq_len = max_seq_len
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._packed: dict[str, tuple[int, list[tuple[int, ...]]]] = {}

    def _rows(self, expert: str, epoch: int) -> list[tuple[int, ...]]:
        held = self._packed.get(expert)
        if held is None or held[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch, *expert.encode()])
            lengths = self._lengths[expert]
            rows = pack(lengths, rng.permutation(len(lengths)), self._max_seq_len)
            # Rows opened late are emptier: shuffled, so that no part of an epoch is.
            held = epoch, [rows[n] for n in rng.permutation(len(rows))]
            self._packed[expert] = held
        return held[1]

    def next(
        self, cursors: Mapping[str, Cursor], mix: Mapping[str, float]
    ) -> tuple[list[PackedRow], dict[str, Cursor]]:
        """The rows of a step, and the cursors after it; the ones given are left as they are."""
        now = {expert: cursors.get(expert, Cursor()) for expert in self._lengths}
        dealt: list[PackedRow] = []
        for _ in range(self._rows_per_step):
            for expert, share in mix.items():
                credit = now[expert].credit + share
                now[expert] = msgspec.structs.replace(now[expert], credit=credit)
            expert = max(mix, key=lambda name: now[name].credit)
            cursor = now[expert]
            rows = self._rows(expert, cursor.epoch)
            dealt.append(PackedRow(expert, cursor.epoch, rows[cursor.row]))
            last = cursor.row + 1 == len(rows)
            now[expert] = Cursor(
                epoch=cursor.epoch + last,
                row=0 if last else cursor.row + 1,
                credit=cursor.credit - 1.0,
            )
        # One expert's rows stand together: an online teacher scores them in one pass.
        dealt.sort(key=lambda row: row.expert)
        return dealt, now


def cursors_to_json(cursors: Mapping[str, Cursor]) -> dict[str, Any]:
    return msgspec.to_builtins(dict(cursors))


def cursors_from_json(data: Any) -> dict[str, Cursor]:
    return msgspec.convert(data, dict[str, Cursor])


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors.

    Attributes:
        input_ids: (B, L) int64, padded at the end of a row.
        position_ids: (B, L) int64, from 0 in each block.
        mask: (B, 1, L, L) bool: within a block, and not ahead.
        gather: (N,) int64 flat indices into B x L of the positions that predict the labels.
        labels: (N,) int64 scored tokens.
        is_end: (N,) bool, on the CPU.
        tokens: student tokens, without padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    mask: Tensor
    gather: Tensor
    labels: Tensor
    is_end: Tensor
    tokens: int


def make_batch(rows: Sequence[Sequence[Row]], device: torch.device) -> Batch:
    """Rows of blocks as one batch, as long as its longest row, rounded up to `LENGTH_STEP`."""
    longest = max(sum(len(block.ids) for block in row) for row in rows)
    length = longest + -longest % LENGTH_STEP
    ids = np.zeros((len(rows), length), dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    segment = np.full((len(rows), length), -1, dtype=np.int32)
    gather, labels, is_end = [], [], []
    tokens = 0
    for r, row in enumerate(rows):
        at = 0
        for n, block in enumerate(row):
            size = len(block.ids)
            ids[r, at : at + size] = block.ids
            positions[r, at : at + size] = np.arange(size)
            segment[r, at : at + size] = n
            gather.append(block.scored + (r * length + at - 1))
            labels.append(block.ids[block.scored])
            is_end.append(block.is_end)
            at += size
        tokens += at
    segments = torch.from_numpy(segment).to(device)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = (segments[:, :, None] == segments[:, None, :]) & causal
    return Batch(
        input_ids=torch.from_numpy(ids).to(device),
        position_ids=torch.from_numpy(positions).to(device),
        mask=mask[:, None],
        gather=torch.from_numpy(np.concatenate(gather)).to(device),
        labels=torch.from_numpy(np.concatenate(labels)).to(device),
        is_end=torch.from_numpy(np.concatenate(is_end)),
        tokens=tokens,
    )
