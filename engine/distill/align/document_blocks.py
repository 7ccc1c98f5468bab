"""Encode a document as blocks, split at white space where it is too long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from engine.distill.align.block_building import ScoredText, build_block
from engine.distill.align.chat_encoder import ChatEncoder
from engine.distill.align.text_block import EncodedExample, TextBlock

BYTES_LOST = "bytes are lost in tokenization"
_ROUGH_CHARS = 6
"""Characters for each token of a limit: a longer text is split before it is encoded."""


def document_blocks(
    text: str,
    complete: bool,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> EncodedExample:
    """The blocks of a document; only its last piece is complete.

    limits: tokens of student and expert in a block, at most.
    """
    blocks: list[TextBlock] = []
    lost: list[tuple[int, int]] = []
    for first, stop, block in _pieces(text, complete, student, teacher, limits, trust_end):
        if block is None:
            lost.append((first, stop))
        elif len(block.alignment):
            blocks.append(block)
    if not lost:
        return EncodedExample(blocks)
    chars = sum(stop - first for first, stop in lost)
    begin = text[lost[0][0] :][:30]
    return EncodedExample(blocks, BYTES_LOST, f"{chars:,} of {len(text):,} characters: {begin!r}")


def _pieces(
    text: str,
    complete: bool,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> Iterator[tuple[int, int, TextBlock | None]]:
    """(first, stop) of each piece, and its block; None where bytes are lost."""
    rough = min(limits) * _ROUGH_CHARS
    ahead = [(0, len(text))]  # a stack: a book in one line is split thousands of times
    while ahead:
        first, stop = ahead.pop()
        if stop - first <= rough:
            piece, ends = text[first:stop], complete and stop == len(text)
            s = student.encode_document(piece, ends)
            t = teacher.encode_document(piece, ends)
            if s is None or t is None:
                yield first, stop, None
                continue
            if s.size <= limits[0] and t.size <= limits[1]:
                key = hashlib.sha256(repr(piece).encode()).hexdigest()
                yield first, stop, build_block(key, s, t, [ScoredText(ends)], trust_end)
                continue
        middle = min(rough, (stop - first) // 2)
        cut = white_space_before(text, first + middle // 2, first + middle)
        cut = first + middle if cut <= first else cut
        if cut <= first:
            yield first, stop, None
            continue
        ahead += [(cut, stop), (first, cut)]


def white_space_before(text: str, first: int, stop: int) -> int:
    """Index of the last line break or space in text[first:stop]; -1 where there is none."""
    return max(text.rfind(mark, first, stop) for mark in ("\n", " "))
