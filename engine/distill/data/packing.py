"""The order of the training data: which packed rows a step trains on, as a pure function of the
seed and the cursors; and packed rows as tensors.

Shapes: B rows, L length, N scored positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from engine.distill.align.blocks import EncodedBlock
from engine.distill.attention import Segments, why_not_packed
from engine.distill.data.cursors import Cursor, StreamPosition
from engine.distill.data.sources import EpochBlocks
from engine.distill.device import padded_length, to_device

_OPEN_ROWS = 8


class PackedRow(msgspec.Struct, frozen=True):
    """Blocks of one source that share a row of the batch."""

    source: str
    epoch: int
    blocks: tuple[int, ...]


class EpochSource(Protocol):
    """The part of a data source that the mixer needs; see `sources.Source`."""

    def open_epoch(self, epoch: int, begins: StreamPosition) -> EpochBlocks: ...
    def release_before(self, epoch: int) -> None: ...


@dataclass(frozen=True)
class PackedEpoch:
    """The packed rows of one epoch of a source, in the order in which they are trained on."""

    cursor: tuple[int, StreamPosition]
    """Number of the epoch and where it begins."""
    rows: list[tuple[int, ...]]
    ends: StreamPosition
    """Where the next epoch begins."""


def pack(lengths: np.ndarray, order: np.ndarray, max_seq_len: int) -> list[tuple[int, ...]]:
    """Put the blocks, in the given order, together in rows of at most `max_seq_len` tokens.

    Each block goes into the fullest of a few open rows that has space for it.
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
    """Chooses the rows of each step: from each source in proportion to the mix, in seeded order."""

    def __init__(
        self,
        sources: Mapping[str, EpochSource],
        max_seq_len: int,
        global_batch_size: int,
        seed: int,
    ) -> None:
        """
        Args:
            sources: by name; the name is part of the seed of a source's order.
            global_batch_size: packed rows per optimizer step.
        """
        self._sources = dict(sources)
        self._max_seq_len = max_seq_len
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._packed: dict[str, PackedEpoch] = {}

    def add(self, name: str, source: EpochSource) -> None:
        """Add a source."""
        self._sources[name] = source

    def remove(self, name: str) -> None:
        """Remove a source, if it is there."""
        self._sources.pop(name, None)
        self._packed.pop(name, None)

    def packed_rows(self, name: str, cursor: Cursor) -> PackedEpoch:
        """The rows of the cursor's epoch of a source."""
        key = cursor.epoch, cursor.position
        packed = self._packed.get(name)
        if packed is None or packed.cursor != key:
            epoch = self._sources[name].open_epoch(*key)
            rng = np.random.default_rng([self._seed, cursor.epoch, *name.encode()])
            order = rng.permutation(len(epoch.token_counts))
            rows = pack(epoch.token_counts, order, self._max_seq_len)
            # Rows opened late are emptier: shuffled, so that no part of an epoch is.
            rows = [rows[n] for n in rng.permutation(len(rows))]
            packed = PackedEpoch(key, rows, epoch.ends)
            self._packed[name] = packed
        return packed

    def next(
        self, cursors: Mapping[str, Cursor], mix: Mapping[str, float]
    ) -> tuple[list[PackedRow], dict[str, Cursor]]:
        """The rows of a step, and the cursors after it; `cursors` is not changed.

        mix: share of each source in the rows.
        """
        after = {name: cursors.get(name, Cursor()) for name in {**self._sources, **cursors}}
        for name, source in self._sources.items():
            source.release_before(after[name].epoch)
        chosen: list[PackedRow] = []
        for _ in range(self._global_batch_size):
            for name, share in mix.items():
                credit = after[name].credit + share
                after[name] = msgspec.structs.replace(after[name], credit=credit)
            name = max(mix, key=lambda name: after[name].credit)
            cursor = after[name]
            packed = self.packed_rows(name, cursor)
            chosen.append(PackedRow(name, cursor.epoch, packed.rows[cursor.row]))
            last = cursor.row + 1 == len(packed.rows)
            after[name] = Cursor(
                epoch=cursor.epoch + last,
                row=0 if last else cursor.row + 1,
                credit=cursor.credit - 1.0,
                position=packed.ends if last else cursor.position,
            )
        # Rows of one source are adjacent: an online teacher scores them in one pass.
        chosen.sort(key=lambda row: row.source)
        return chosen, after


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors.

    Attributes:
        input_ids: (B, L) int64, padded at the end of a row.
        position_ids: (B, L) int64, from 0 in each block.
        segment: (B, L) int32, number of the block in its row; -1: padding.
        segments: the blocks and the padding, for attention without a mask.
        gather: (N,) int64 flat indices into B x L of the positions that predict the labels.
        labels: (N,) int64 scored tokens.
        is_end: (N,) bool, on the CPU.
        tokens: student tokens, without padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    segment: Tensor
    segments: Segments
    gather: Tensor
    labels: Tensor
    is_end: Tensor
    tokens: int

    @cached_property
    def mask(self) -> Tensor:
        """(B, 1, L, L) bool: within a block, and not ahead."""
        length = self.segment.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.segment.device).tril()
        return ((self.segment[:, :, None] == self.segment[:, None, :]) & causal)[:, None]

    def attention(self, dtype: torch.dtype) -> Tensor | Segments:
        """What `forward.hidden_states` needs on this device, with products of this dtype."""
        packed = why_not_packed(self.segment.device, dtype) == ""
        return self.segments if packed else self.mask


def make_batch(rows: Sequence[Sequence[EncodedBlock]], device: torch.device) -> Batch:
    """Rows of blocks as one batch, as long as its longest row, rounded up."""
    longest = max(sum(len(block.ids) for block in row) for row in rows)
    length = padded_length(longest, device)
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

    # Blocks begin where the number changes, rows where they begin.
    begins = np.ones_like(segment, dtype=bool)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    edges = np.append(np.flatnonzero(begins), begins.size).astype(np.int32)

    def put(array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), device)

    return Batch(
        input_ids=put(ids),
        position_ids=put(positions),
        segment=put(segment),
        segments=Segments(put(edges), int(np.diff(edges).max())),
        gather=put(np.concatenate(gather)),
        labels=put(np.concatenate(labels)),
        is_end=torch.from_numpy(np.concatenate(is_end)),
        tokens=tokens,
    )
