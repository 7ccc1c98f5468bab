"""Owns how student and expert read the same text: each in its own chat format and tokens, with
the scored bytes (the assistant's turns, or the document) laid side by side.

It does not own where the text comes from (`conversations`, `textdata`) nor what is scored of it.
"""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerFast

from engine.distill.align.projection import Alignment, align, concatenate
from engine.distill.align.vocabulary import ByteVocabulary
from engine.text.examples import Example

Chat = list[dict[str, str]]
Render = Callable[[Chat], str]

LENGTH_STEP = 64
"""Few lengths of batches: for every new one a CPU compiles its bf16 kernels anew and keeps them."""


@dataclass(frozen=True)
class Span:
    """One scored span as one model reads it: its tokens and the bytes that each covers."""

    ids: np.ndarray
    lengths: np.ndarray
    dummy: bool
    """Whether the first token carries SentencePiece's dummy space besides its bytes."""


@dataclass(frozen=True)
class Reading:
    """A whole block as one model reads it.

    Attributes:
        ids: (S,) int64, context and scored tokens.
        scored: (K,) int64, indices into ids of the scored tokens, ends of turn included; an end
            that closes the block may stand at len(ids), where no token needs to follow.
        spans: the scored spans.
    """

    ids: np.ndarray
    scored: np.ndarray
    spans: tuple[Span, ...]


class ChatEncoder:
    """A model's way to read text: tokenizer, chat format and ends of turn."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        render: Render,
        end_ids: Sequence[int],
        size: int | None = None,
    ) -> None:
        """
        Args:
            render: messages to the chat text that ends where the assistant's answer begins.
            end_ids: tokens that end a turn; the first is the one written.
            size: rows of the embedding matrix, where it has more than the tokenizer.
        """
        self.tokenizer = tokenizer
        self.render = render
        self.end_ids = tuple(end_ids)
        self.vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, size)
        bos = tokenizer.bos_token_id
        self._document_start = bos if bos is not None else self.end_ids[0]
        probe = tokenizer("a").input_ids
        self._adds_bos = bos is not None and bool(probe) and probe[0] == bos

    def twin(self) -> ChatEncoder:
        """The same reader for another thread, with a tokenizer of its own."""
        twin = copy.copy(self)
        twin.tokenizer = copy.deepcopy(self.tokenizer)
        return twin

    def context(self, text: str, first: bool) -> np.ndarray:
        """Ids of chat text around the scored spans; special tokens in it are special."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        if first and self._adds_bos and (not ids or ids[0] != self.tokenizer.bos_token_id):
            ids = [self.tokenizer.bos_token_id, *ids]
        return np.array(ids, dtype=np.int64)

    def span(self, text: str, start: bool = False) -> Span | None:
        """The scored tokens of `text`; None where their bytes do not give it back."""
        if start:
            ids, dummy = self.vocabulary.encode_start(text)
        else:
            ids, dummy = self.vocabulary.encode(text), 0
        lengths = self.vocabulary.lengths[ids].copy()
        expected = b" " * dummy + text.encode()
        if (lengths < 0).any() or not self.vocabulary.spells(ids, expected):
            return None
        if dummy:
            lengths[0] -= 1
        return Span(ids, lengths, bool(dummy))

    def read_document(self, text: str, complete: bool) -> Reading | None:
        """A document, with its end when it is complete."""
        span = self.span(text, start=True)
        if span is None or not len(span.ids):
            return None
        ids = np.concatenate([[self._document_start], span.ids, [self.end_ids[0]]])
        scored = np.arange(1, len(ids) if complete else len(ids) - 1)
        return Reading(ids if complete else ids[:-1], scored, (span,))

    def read_chat(self, messages: Chat, complete: bool) -> Reading | None:
        """A conversation; None where it can't be read in one piece or byte for byte."""
        pieces: list[np.ndarray] = []
        scored: list[np.ndarray] = []
        spans: list[Span] = []
        length = 0
        so_far = ""
        turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns:
            prompt = self.render(messages[:turn])
            if not prompt.startswith(so_far):
                return None
            between = self.context(prompt[len(so_far) :], first=not so_far)
            content = messages[turn]["content"]
            span = self.span(content)
            if span is None:
                return None
            if spans and (not len(between) or between[0] not in self.end_ids):
                # the template wrote no end of turn: it must stand there for the turn to end
                between = np.concatenate([[self.end_ids[0]], between])
            pieces += [between, span.ids]
            first = length + len(between)
            length = first + len(span.ids)
            ends = complete or turn != turns[-1]
            scored.append(np.arange(first, length + ends))
            spans.append(span)
            so_far = prompt + content
        if complete:
            pieces.append(np.array([self.end_ids[0]]))
        return Reading(
            np.concatenate(pieces).astype(np.int64), np.concatenate(scored), tuple(spans)
        )


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
    """A text as the student and one expert read it.

    Attributes:
        key: hex digest of the text, the same for every expert and tokenizer.
        text_bytes: scored bytes, without ends of turn.
        student_ids, teacher_ids: (S,), (T,) all tokens, context included.
        student_scored: (N,) indices of the scored tokens in student_ids.
        teacher_scored: (M,) likewise; the logits that predict a token stand one before it.
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


def normalise(example: Example) -> Example:
    """The example in Unicode's NFC."""
    if example.messages is None:
        return msgspec.structs.replace(example, text=_nfc(example.text or ""))
    messages = tuple(
        msgspec.structs.replace(message, content=_nfc(message.content))
        for message in example.messages
    )
    return msgspec.structs.replace(example, messages=messages)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def make_blocks(
    example: Example,
    student: ChatEncoder,
    teacher: ChatEncoder,
    *,
    max_student_tokens: int,
    max_teacher_tokens: int,
    trust_end: bool = True,
) -> Iterator[TextBlock | None]:
    """The blocks of one example; None for each that had to be skipped.

    A document too long for a block is cut at white space, and only its last piece is complete. A
    conversation too long loses what comes after the last turn that fits.
    """
    example = normalise(example)
    limits = (max_student_tokens, max_teacher_tokens)
    if example.messages is None:
        yield from _document_blocks(
            example.text or "", example.complete, student, teacher, limits, trust_end
        )
        return
    chat = [{"role": m.role, "content": m.content} for m in example.messages]
    last = max((n for n, m in enumerate(chat) if m["role"] == "assistant"), default=-1)
    if last < 0:
        yield None
        return
    yield _chat_block(chat[: last + 1], example.complete, student, teacher, limits, trust_end)


def _chat_block(
    chat: Chat,
    complete: bool,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> TextBlock | None:
    while chat:
        readings = student.read_chat(chat, complete), teacher.read_chat(chat, complete)
        if readings[0] is None or readings[1] is None:
            return None
        if _fit(readings[0], readings[1], limits):
            spans = [m["content"] for m in chat if m["role"] == "assistant"]
            ends = [complete or n < len(spans) - 1 for n in range(len(spans))]
            return _block(chat, spans, ends, readings[0], readings[1], teacher, trust_end)
        earlier = [n for n, m in enumerate(chat[:-1]) if m["role"] == "assistant"]
        if earlier:
            chat, complete = chat[: earlier[-1] + 1], True
            continue
        content = chat[-1]["content"]
        if len(content) < 2:
            return None
        chat = [*chat[:-1], {"role": "assistant", "content": content[: len(content) * 3 // 4]}]
        complete = False
    return None


def _document_blocks(
    text: str,
    complete: bool,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> Iterator[TextBlock | None]:
    # A token is rarely under a byte and a half: what is certainly too long is cut before encoding.
    rough = min(limits) * 6
    if len(text) <= rough:
        readings = student.read_document(text, complete), teacher.read_document(text, complete)
        if readings[0] is None or readings[1] is None:
            yield None
            return
        if _fit(readings[0], readings[1], limits):
            yield _block(text, [text], [complete], readings[0], readings[1], teacher, trust_end)
            return
    middle = min(rough, len(text) // 2)
    cut = max(text.rfind(mark, middle // 2, middle) for mark in ("\n", " "))
    cut = middle if cut <= 0 else cut
    if cut <= 0:
        yield None
        return
    for piece, ends in ((text[:cut], False), (text[cut:], complete)):
        yield from _document_blocks(piece, ends, student, teacher, limits, trust_end)


def _fit(student: Reading, teacher: Reading, limits: tuple[int, int]) -> bool:
    return len(student.ids) <= limits[0] and len(teacher.ids) <= limits[1]


def _block(
    source: object,
    texts: list[str],
    ends: list[bool],
    student: Reading,
    teacher: Reading,
    teacher_encoder: ChatEncoder,
    trust_end: bool,
) -> TextBlock:
    parts = []
    is_end = []
    for s, t, has_end in zip(student.spans, teacher.spans, ends, strict=True):
        part = align(t.ids, t.lengths, s.ids, s.lengths)
        if (s.dummy or t.dummy) and len(part):
            part.soft[0] = False
        if t.dummy:
            # the dummy space is a byte of the teacher's first token too, before those of the text
            part.offset[(part.at == 0) & (part.offset > 0)] += 1
        parts.append(part)
        is_end.append(np.zeros(len(s.ids), dtype=bool))
        if has_end:
            parts.append(_end_of_turn(trust_end))
            is_end.append(np.ones(1, dtype=bool))
    alignment = concatenate(parts)
    ending = np.concatenate(is_end)
    alignment.token[ending] = student.ids[student.scored[ending]]
    return TextBlock(
        key=hashlib.sha256(repr(source).encode()).hexdigest(),
        text_bytes=sum(len(text.encode()) for text in texts),
        student_ids=student.ids,
        teacher_ids=teacher.ids,
        student_scored=student.scored,
        teacher_scored=teacher.scored,
        is_end=ending,
        alignment=alignment,
    )


def _end_of_turn(trust_end: bool) -> Alignment:
    """Rule 4: one position on each side, aligned; the teacher's realised token does not matter."""
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
