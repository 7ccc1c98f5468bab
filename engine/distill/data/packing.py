"""Owns the order of the data: which packed rows a step trains on, as a pure function of the seed
and a cursor, and how rows become tensors.

It does not own where blocks (`streams`) and their targets come from (`targets`, `scoring`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from engine.distill.align.blocks import LENGTH_STEP, EncodedBlock

_OPEN_ROWS = 8


class StreamPosition(msgspec.Struct, frozen=True, array_like=True):
    """Where the reading of a streamed text stands."""

    turn: int = 0
    """Which pass over the text."""
    upcoming: int = 0
    """Pieces of the pass that were begun."""
    lanes: tuple[tuple[int, int, int], ...] = ()
    """Those that are being read: piece, part of it, examples of the part that are passed."""


@dataclass(frozen=True)
class StreamWindow:
    """Blocks of a streamed text that are shuffled and packed together."""

    begins: StreamPosition
    ends: StreamPosition
    lengths: np.ndarray
    """Student tokens of each block, (blocks,) int64."""


class WindowedSource(Protocol):
    """Text that is read window by window; the epochs of its rows are the windows' numbers."""

    def window(self, number: int, place: StreamPosition) -> StreamWindow:
        """The window that begins at `place`."""
        ...

    def forget(self, before: int) -> None:
        """No row of the windows before this one is asked for any more."""
        ...


class PackedRow(msgspec.Struct, frozen=True):
    """Blocks of one feed that share a row of the batch."""

    feed: str
    epoch: int
    blocks: tuple[int, ...]


class Cursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a feed stands: the next row of which epoch, and the credit of its share."""

    epoch: int = 0
    """Of a stream: the number of the window, which begins at `place`."""
    row: int = 0
    credit: float = 0.0
    place: StreamPosition = StreamPosition()


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
    """Deals out rows: of each feed in proportion to the mix, in an order the seed decides.

    A feed is what rows are dealt of: text of one expert that is all there (an epoch has each block
    once), or a stream of it (an epoch is a window).
    """

    def __init__(
        self,
        feeds: Mapping[str, np.ndarray | WindowedSource],
        max_seq_len: int,
        rows_per_step: int,
        seed: int,
    ) -> None:
        """feeds: the student tokens of each block, (blocks,) int64; or windows of them."""
        self._feeds = dict(feeds)
        self._max_seq_len = max_seq_len
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._packed: dict[
            str, tuple[tuple[int, StreamPosition], list[tuple[int, ...]], StreamPosition]
        ] = {}

    def offer(self, feed: str, lengths: np.ndarray) -> None:
        """One more feed, of blocks that are all there."""
        self._feeds[feed] = lengths

    def withdraw(self, feed: str) -> None:
        """A feed is over."""
        self._feeds.pop(feed, None)
        self._packed.pop(feed, None)

    def _rows(self, feed: str, cursor: Cursor) -> tuple[list[tuple[int, ...]], StreamPosition]:
        """The rows of the cursor's epoch, and where the next one begins."""
        held = self._packed.get(feed)
        if held is None or held[0] != (cursor.epoch, cursor.place):
            source = self._feeds[feed]
            if isinstance(source, np.ndarray):
                lengths, ends = source, StreamPosition()
            else:
                window = source.window(cursor.epoch, cursor.place)
                lengths, ends = window.lengths, window.ends
            rng = np.random.default_rng([self._seed, cursor.epoch, *feed.encode()])
            rows = pack(lengths, rng.permutation(len(lengths)), self._max_seq_len)
            # Rows opened late are emptier: shuffled, so that no part of an epoch is.
            rows = [rows[n] for n in rng.permutation(len(rows))]
            held = (cursor.epoch, cursor.place), rows, ends
            self._packed[feed] = held
        return held[1], held[2]

    def next(
        self, cursors: Mapping[str, Cursor], mix: Mapping[str, float]
    ) -> tuple[list[PackedRow], dict[str, Cursor]]:
        """The rows of a step, and the cursors after it; the ones given are left as they are."""
        now = {feed: cursors.get(feed, Cursor()) for feed in {**self._feeds, **cursors}}
        for feed, source in self._feeds.items():
            if not isinstance(source, np.ndarray):
                source.forget(now[feed].epoch)
        dealt: list[PackedRow] = []
        for _ in range(self._rows_per_step):
            for feed, share in mix.items():
                credit = now[feed].credit + share
                now[feed] = msgspec.structs.replace(now[feed], credit=credit)
            feed = max(mix, key=lambda name: now[name].credit)
            cursor = now[feed]
            rows, ends = self._rows(feed, cursor)
            dealt.append(PackedRow(feed, cursor.epoch, rows[cursor.row]))
            last = cursor.row + 1 == len(rows)
            now[feed] = Cursor(
                epoch=cursor.epoch + last,
                row=0 if last else cursor.row + 1,
                credit=cursor.credit - 1.0,
                place=ends if last else cursor.place,
            )
        # One feed's rows stand together: an online teacher scores them in one pass.
        dealt.sort(key=lambda row: row.feed)
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


def make_batch(rows: Sequence[Sequence[EncodedBlock]], device: torch.device) -> Batch:
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
