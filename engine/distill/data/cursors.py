"""Read positions in the training data: one cursor per source, stored in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class StreamPosition(msgspec.Struct, frozen=True, array_like=True):
    """Read position in a streamed text. Stored as an array: the order of fields is fixed."""

    pass_number: int = 0
    """Number of the pass over the text."""
    pieces_started: int = 0
    """Pieces of the pass that have been opened."""
    open_pieces: tuple[tuple[int, int, int], ...] = ()
    """Pieces being read: (piece, part of it, examples of the part already read)."""


TEXT_START = StreamPosition()


class Cursor(msgspec.Struct, frozen=True, omit_defaults=True):
    """Read position in one source."""

    epoch: int = 0
    """Number of the epoch; of a streamed source, of the window that begins at `position`."""
    row: int = 0
    """Next packed row of the epoch."""
    credit: float = 0.0
    """Rows due to the source by its share, minus the rows that it supplied."""
    position: StreamPosition = msgspec.field(default=TEXT_START, name="place")


def cursors_to_json(cursors: Mapping[str, Cursor]) -> dict[str, Any]:
    """The cursors by source name, as plain JSON values."""
    return msgspec.to_builtins(dict(cursors))


def cursors_from_json(data: Any) -> dict[str, Cursor]:
    """The inverse; raises msgspec.ValidationError."""
    return msgspec.convert(data, dict[str, Cursor])
