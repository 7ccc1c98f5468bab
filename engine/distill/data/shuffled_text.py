"""Read a text that is larger than memory in a seeded order that can be resumed from any position.

How the text is stored is left to `engine.text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from engine.distill.data.cursors import StreamPosition
from engine.text.hub import HubPieces
from engine.text.pieces import Item, TextPieces
from engine.text.sources import HUB, open_files, parse_hub

OPEN_PIECES = 8
"""Pieces that are read at the same time, so that neighbours in one piece are not read in a row."""


def open_texts(
    sources: Sequence[str], cache_dir: Path, original: Callable[[Path], str] = str
) -> list[TextPieces]:
    """The text of the sources in pieces; all files together are one text.

    original: the path of a file that is part of its text's fingerprint.

    UsageError or MissingError where one cannot be opened.
    """
    files = [source for source in sources if not source.startswith(HUB)]
    texts: list[TextPieces] = []
    if files:
        texts.append(open_files(files, original))
    hub = [source for source in sources if source.startswith(HUB)]
    return texts + [HubPieces(parse_hub(source), source, cache_dir) for source in hub]


class ShuffledText:
    """A text's examples in an order that follows from the seed, from any position.

    Pieces are opened in a shuffled order, a different one in each pass; OPEN_PIECES of them are
    read at the same time, and the next example is from one of them at random.
    """

    def __init__(self, text: TextPieces, seed: Sequence[int]) -> None:
        self.text = text
        self._seed = list(seed)
        self._live: tuple[StreamPosition, list[_OpenPiece]] | None = None

    def read(self, position: StreamPosition, window: int) -> Iterator[tuple[Item, StreamPosition]]:
        """Items from `position` to the end of its pass, each with the position after it.

        The number of the window seeds the choice of the next piece.
        """
        rng = np.random.default_rng([*self._seed, 1, window])
        order = self._piece_order(position.pass_number)
        pieces = self._resume(position)
        started = position.pieces_started
        while True:
            while len(pieces) < OPEN_PIECES and started < len(order):
                pieces.append(_OpenPiece(self.text, order[started]))
                started += 1
            if not pieces:
                return
            piece = pieces[int(rng.integers(len(pieces)))]
            try:
                item = next(piece)
            except StopIteration:
                pieces.remove(piece)
                continue
            after = StreamPosition(
                pass_number=position.pass_number,
                pieces_started=started,
                open_pieces=tuple(piece.position for piece in pieces),
            )
            self._live = after, pieces
            yield item, after

    def _piece_order(self, pass_number: int) -> list[int]:
        rng = np.random.default_rng([*self._seed, 0, pass_number])
        return rng.permutation(self.text.pieces).tolist()

    def _resume(self, position: StreamPosition) -> list[_OpenPiece]:
        """The open pieces at `position`: those in memory, or opened and advanced again."""
        if self._live is not None and self._live[0] == position:
            return self._live[1]
        return [
            _OpenPiece(self.text, piece, part, passed)
            for piece, part, passed in position.open_pieces
        ]


class _OpenPiece:
    """One piece that is being read; `position` is (piece, part, items of the part read)."""

    def __init__(self, text: TextPieces, piece: int, part: int = 0, passed: int = 0) -> None:
        self.position = (piece, part, passed)
        self._items = text.read(piece, part, passed)

    def __iter__(self) -> _OpenPiece:
        return self

    def __next__(self) -> Item:
        part, item = next(self._items)
        piece, previous, passed = self.position
        self.position = (piece, part, passed + 1 if part == previous else 1)
        return item
