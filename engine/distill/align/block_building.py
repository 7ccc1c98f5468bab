"""Put the two encodings of a text together as a block: its scored spans are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.distill.align.alignment import Alignment, align, concatenate
from engine.distill.align.chat_encoder import EncodedSpan, ModelText
from engine.distill.align.text_block import TextBlock


@dataclass(frozen=True)
class ScoredText:
    """A scored span of a block.

    Attributes:
        ends: whether an end of turn follows.
        without_expert: byte ranges in which the expert's distribution is not used, because it would
            write something else there: the marks of a call, in a form that is not its own.
    """

    ends: bool
    without_expert: tuple[tuple[int, int], ...] = ()


def build_block(
    key: str,
    student: ModelText,
    teacher: ModelText,
    texts: Sequence[ScoredText],
    trust_end: bool,
) -> TextBlock:
    """The block of two encodings with the same scored spans; `texts` has one for each span."""
    parts: list[Alignment] = []
    is_end: list[np.ndarray] = []
    for s, t, text in zip(student.spans, teacher.spans, texts, strict=True):
        part = _align_spans(s, t)
        if text.without_expert:
            part.soft[_overlapping(s.lengths, text.without_expert)] = False
        parts.append(part)
        is_end.append(np.zeros(len(s.ids), dtype=bool))
        if text.ends:
            parts.append(_end_of_turn(trust_end))
            is_end.append(np.ones(1, dtype=bool))
    alignment = concatenate(parts)
    ending = np.concatenate(is_end)
    student_ids, student_scored = student.ids, student.scored_ids
    alignment.token[ending] = student_ids[student_scored[ending]]
    return TextBlock(
        key=key,
        text_bytes=sum(int(span.lengths.sum()) for span in student.spans),
        student_ids=student_ids,
        teacher_ids=teacher.ids,
        student_scored=student_scored,
        teacher_scored=teacher.scored_ids,
        is_end=ending,
        alignment=alignment,
    )


def _align_spans(student: EncodedSpan, teacher: EncodedSpan) -> Alignment:
    if student.in_chat and teacher.in_chat:
        # The space before the answer is a byte of both first tokens.
        student, teacher = _with_space(student), _with_space(teacher)
        return align(teacher.ids, teacher.lengths, student.ids, student.lengths)
    part = align(teacher.ids, teacher.lengths, student.ids, student.lengths)
    if not len(part):
        return part
    if student.dummy or (teacher.dummy and not teacher.in_chat):
        part.soft[0] = False
    if teacher.dummy:
        # The space is a byte of the teacher's first token, before those of the text. Where a chat
        # template writes it, the teacher is asked for the first word after a space (rule 2).
        part.offset[(part.at == 0) & ((part.offset > 0) | teacher.in_chat)] += 1
    return part


def _with_space(span: EncodedSpan) -> EncodedSpan:
    lengths = span.lengths.copy()
    lengths[0] += 1
    return replace(span, lengths=lengths)


def _overlapping(lengths: np.ndarray, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """(n,) bool: the tokens that have a byte in one of the ranges."""
    stop = np.cumsum(lengths)
    start = stop - lengths
    found = np.zeros(len(lengths), dtype=bool)
    for first, last in ranges:
        found |= (start < last) & (stop > first)
    return found


def _end_of_turn(trust_end: bool) -> Alignment:
    """Rule 4: one aligned position on each side; the teacher's realised token is not used."""
    zero, none = np.zeros(1, dtype=np.int64), np.full(1, -1, dtype=np.int64)
    return Alignment(
        teacher_ids=none,
        at=zero,
        offset=zero,
        token=zero.copy(),
        inside_stop=none,
        rest_at=none,
        rest_length=zero,
        soft=np.array([trust_end]),
    )
