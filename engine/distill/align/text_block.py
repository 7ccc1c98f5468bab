"""Encoded text: what a student trains on, and the same text in the tokens of an expert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.distill.align.alignment import Alignment


@dataclass(frozen=True)
class EncodedBlock:
    """A block as the student trains on it.

    Attributes:
        ids: (S,) int64 all tokens, context included.
        scored: (N,) indices of the scored tokens in ids.
        is_end: (N,) bool, ends of turn.
        text_bytes: scored bytes, without ends of turn.
    """

    ids: np.ndarray
    scored: np.ndarray
    is_end: np.ndarray
    text_bytes: int


@dataclass(frozen=True)
class TextBlock:
    """A text in the tokens of the student and of one expert.

    Attributes:
        key: hex digest of the text.
        text_bytes: scored bytes, without ends of turn.
        student_ids, teacher_ids: (S,), (T,) all tokens, context included.
        student_scored: (N,) indices of the scored tokens in student_ids.
        teacher_scored: (M,) likewise; the logits that predict a token are at the index before it.
        is_end: (N,) bool, ends of turn.
        alignment: of the N and M scored positions.
    """

    key: str
    text_bytes: int
    student_ids: np.ndarray
    teacher_ids: np.ndarray
    student_scored: np.ndarray
    teacher_scored: np.ndarray
    is_end: np.ndarray
    alignment: Alignment

    @property
    def for_student(self) -> EncodedBlock:
        """The block as the student trains on it."""
        return EncodedBlock(self.student_ids, self.student_scored, self.is_end, self.text_bytes)


@dataclass(frozen=True)
class EncodedExample:
    """The blocks of one example, and what of it is not learnt.

    Attributes:
        blocks: what is learnt; empty where the example is left out.
        problem: short constant reason why it, or a part of it, is not learnt; "" without one.
        detail: the particulars, such as the chat template's own words.
    """

    blocks: list[TextBlock]
    problem: str = ""
    detail: str = ""
