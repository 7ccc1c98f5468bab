"""Align the tokens of a student and a teacher over the same bytes.

Shapes: N student positions, M teacher positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Alignment:
    """Scored positions of student and teacher over the same bytes, in the order of the text.

    All arrays but `teacher_ids` are (N,) int64.

    Attributes:
        teacher_ids: (M,) realised teacher token at each position; -1 at an end of turn.
        at: teacher position whose token covers the student token's first byte.
        offset: bytes of that token before it (0 under rule 1).
        token: realised student token.
        inside_stop: teacher tokens at+1 .. inside_stop-1 are completely inside a crossing token;
            -1 where the student's token does not cross (rule 3 does not apply).
        rest_at: teacher position that begins with what remains of a crossing token; -1 if nothing.
        rest_length: bytes that remain.
        soft: bool; False where the expert's distribution is not used (cross-entropy only).
    """

    teacher_ids: np.ndarray
    at: np.ndarray
    offset: np.ndarray
    token: np.ndarray
    inside_stop: np.ndarray
    rest_at: np.ndarray
    rest_length: np.ndarray
    soft: np.ndarray

    def __len__(self) -> int:
        return len(self.at)


def align(
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
) -> Alignment:
    """The alignment of two encodings, (M,) and (N,), of the same bytes.

    teacher_lengths, student_lengths: bytes of each token; both sum to the same number.
    """
    teacher_end = np.cumsum(teacher_lengths)
    teacher_start = teacher_end - teacher_lengths
    student_end = np.cumsum(student_lengths)
    student_start = student_end - student_lengths
    count = len(student_ids)
    at = np.searchsorted(teacher_end, student_start, side="right")
    offset = student_start - teacher_start[at] if count else np.zeros(0, dtype=np.int64)
    last = np.searchsorted(teacher_end, student_end, side="left")
    ends_with = teacher_end[last] == student_end if count else np.zeros(0, dtype=bool)
    crosses = last > at
    return Alignment(
        teacher_ids=teacher_ids.astype(np.int64),
        at=at.astype(np.int64),
        offset=offset.astype(np.int64),
        token=student_ids.astype(np.int64),
        inside_stop=np.where(crosses, last + ends_with, -1),
        rest_at=np.where(crosses & ~ends_with, last, -1),
        rest_length=np.where(crosses & ~ends_with, student_end - teacher_start[last], 0)
        if count
        else np.zeros(0, dtype=np.int64),
        soft=np.ones(count, dtype=bool),
    )


def concatenate(parts: Sequence[Alignment]) -> Alignment:
    """One alignment of several texts, one after the other."""
    shifts = np.cumsum([0, *(len(part.teacher_ids) for part in parts)])[:-1]

    def joined(name: str, shifted: bool = False) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if shifted:
            arrays = [
                np.where(array >= 0, array + shift, -1)
                for array, shift in zip(arrays, shifts, strict=True)
            ]
        return np.concatenate(arrays)

    return Alignment(
        teacher_ids=joined("teacher_ids"),
        at=joined("at", shifted=True),
        offset=joined("offset"),
        token=joined("token"),
        inside_stop=joined("inside_stop", shifted=True),
        rest_at=joined("rest_at", shifted=True),
        rest_length=joined("rest_length"),
        soft=joined("soft"),
    )
