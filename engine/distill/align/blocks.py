"""Encode the same text for the student and an expert, each in its own chat format and tokens, with
the scored bytes (the assistant's turns, or the document) aligned.

Shapes: S student tokens, T teacher tokens, N and M scored positions of student and teacher.
"""

from __future__ import annotations

import copy
import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerFast

from engine.distill.align.alignment import Alignment, align, concatenate
from engine.distill.align.vocabulary import ByteVocabulary
from engine.text.examples import Example

Chat = list[dict[str, str]]
Render = Callable[[Chat], str]

LENGTH_STEP = 64
"""Batch lengths are rounded up to a multiple: a CPU compiles its bf16 kernels for each length."""
MIN_TEACHER_CONTEXT = 2048
"""Tokens that an expert may use for a block, even where the student's rows are shorter."""


@dataclass(frozen=True)
class EncodedSpan:
    """The tokens of one scored span, and the number of bytes that each covers."""

    ids: np.ndarray
    lengths: np.ndarray
    dummy: bool
    """Whether the first token includes SentencePiece's dummy space in addition to its bytes."""


@dataclass(frozen=True)
class EncodedText:
    """A complete block in one model's tokens.

    Attributes:
        ids: (S,) int64, context and scored tokens.
        scored: (N,) int64, indices into ids of the scored tokens, ends of turn included.
        spans: the scored spans.
    """

    ids: np.ndarray
    scored: np.ndarray
    spans: tuple[EncodedSpan, ...]


class ChatEncoder:
    """Encodes text for one model: its tokenizer, chat format and end-of-turn tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        render: Render,
        end_ids: Sequence[int],
        vocab_size: int | None = None,
    ) -> None:
        """
        Args:
            render: turns messages into the chat text up to where the assistant's answer begins.
            end_ids: tokens that end a turn; the first is the one used when encoding.
            vocab_size: rows of the embedding matrix, where it has more than the tokenizer.
        """
        self.tokenizer = tokenizer
        self.render = render
        self.end_ids = tuple(end_ids)
        self.vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, vocab_size)
        bos = tokenizer.bos_token_id
        self._document_start = bos if bos is not None else self.end_ids[0]
        probe = tokenizer("a").input_ids
        self._adds_bos = bos is not None and bool(probe) and probe[0] == bos

    def copy_for_thread(self) -> ChatEncoder:
        """The same encoder for another thread, with its own copy of the tokenizer."""
        copied = copy.copy(self)
        copied.tokenizer = copy.deepcopy(self.tokenizer)
        return copied

    def encode_context(self, text: str, first: bool) -> np.ndarray:
        """Ids of chat text around the scored spans; special tokens keep their meaning."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids if text else []
        if first and self._adds_bos and (not ids or ids[0] != self.tokenizer.bos_token_id):
            ids = [self.tokenizer.bos_token_id, *ids]
        return np.array(ids, dtype=np.int64)

    def encode_span(self, text: str, start: bool = False) -> EncodedSpan | None:
        """The scored tokens of `text`; None where their bytes are not those of the text.

        start: the span begins a document, where SentencePiece adds its dummy space.
        """
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
        return EncodedSpan(ids, lengths, bool(dummy))

    def encode_document(self, text: str, complete: bool) -> EncodedText | None:
        """A document, with an end token when it is complete; None where bytes are lost."""
        span = self.encode_span(text, start=True)
        if span is None or not len(span.ids):
            return None
        ids = np.concatenate([[self._document_start], span.ids, [self.end_ids[0]]])
        scored = np.arange(1, len(ids) if complete else len(ids) - 1)
        return EncodedText(ids if complete else ids[:-1], scored, (span,))

    def encode_chat(self, messages: Chat, complete: bool) -> EncodedText | None:
        """A conversation, every assistant turn scored.

        None where bytes are lost, or where the template does not render a longer conversation as a
        continuation of a shorter one.
        """
        pieces: list[np.ndarray] = []
        scored: list[np.ndarray] = []
        spans: list[EncodedSpan] = []
        length = 0
        so_far = ""
        turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns:
            prompt = self.render(messages[:turn])
            if not prompt.startswith(so_far):
                return None
            between = self.encode_context(prompt[len(so_far) :], first=not so_far)
            content = messages[turn]["content"]
            span = self.encode_span(content)
            if span is None:
                return None
            if spans and (not len(between) or between[0] not in self.end_ids):
                # The template wrote no end of turn: the turn needs one.
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
        return EncodedText(
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
    """A text in the tokens of the student and of one expert.

    Attributes:
        key: hex digest of the text, the same for every expert and tokenizer.
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


def normalise(example: Example) -> Example:
    """The example in Unicode NFC."""
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
    """The blocks of one example; None for each that has to be skipped.

    A document that is too long for a block is split at white space; only its last piece is
    complete. A conversation that is too long loses everything after the last turn that fits.

    trust_end: whether the expert's probability of an end of turn is a target.
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


@dataclass(frozen=True)
class BlockEncoder:
    """Encodes examples as blocks for the student and one expert.

    Attributes:
        max_seq_len: the student's tokens in a block, at most.
        trust_end: whether the expert's probability of an end of turn is a target.
        max_teacher_tokens: the expert's tokens in a block, at most; by default `max_seq_len` or
            MIN_TEACHER_CONTEXT, whichever is more.
    """

    student: ChatEncoder
    teacher: ChatEncoder
    max_seq_len: int
    trust_end: bool = True
    max_teacher_tokens: int | None = None

    def encode(self, example: Example) -> Iterator[TextBlock | None]:
        """The blocks of one example; None for each that has to be skipped."""
        for block in make_blocks(
            example,
            self.student,
            self.teacher,
            max_student_tokens=self.max_seq_len,
            max_teacher_tokens=self.max_teacher_tokens
            or max(self.max_seq_len, MIN_TEACHER_CONTEXT),
            trust_end=self.trust_end,
        ):
            yield block if block is not None and len(block.alignment) else None

    def copy_for_thread(self) -> BlockEncoder:
        """The same encoder for another thread, with its own copies of the tokenizers."""
        return replace(
            self,
            student=self.student.copy_for_thread(),
            teacher=self.teacher.copy_for_thread(),
        )


def _chat_block(
    chat: Chat,
    complete: bool,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> TextBlock | None:
    while chat:
        student_text = student.encode_chat(chat, complete)
        teacher_text = teacher.encode_chat(chat, complete)
        if student_text is None or teacher_text is None:
            return None
        if _fits(student_text, teacher_text, limits):
            spans = [m["content"] for m in chat if m["role"] == "assistant"]
            ends = [complete or n < len(spans) - 1 for n in range(len(spans))]
            return _block(chat, spans, ends, student_text, teacher_text, trust_end)
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
    # A token rarely has under 1.5 bytes: text that is certainly too long is split before encoding.
    rough = min(limits) * 6
    if len(text) <= rough:
        student_text = student.encode_document(text, complete)
        teacher_text = teacher.encode_document(text, complete)
        if student_text is None or teacher_text is None:
            yield None
            return
        if _fits(student_text, teacher_text, limits):
            yield _block(text, [text], [complete], student_text, teacher_text, trust_end)
            return
    middle = min(rough, len(text) // 2)
    cut = max(text.rfind(mark, middle // 2, middle) for mark in ("\n", " "))
    cut = middle if cut <= 0 else cut
    if cut <= 0:
        yield None
        return
    for piece, ends in ((text[:cut], False), (text[cut:], complete)):
        yield from _document_blocks(piece, ends, student, teacher, limits, trust_end)


def _fits(student: EncodedText, teacher: EncodedText, limits: tuple[int, int]) -> bool:
    return len(student.ids) <= limits[0] and len(teacher.ids) <= limits[1]


def _block(
    content: object,
    texts: list[str],
    ends: list[bool],
    student: EncodedText,
    teacher: EncodedText,
    trust_end: bool,
) -> TextBlock:
    parts = []
    is_end = []
    for s, t, has_end in zip(student.spans, teacher.spans, ends, strict=True):
        part = align(t.ids, t.lengths, s.ids, s.lengths)
        if (s.dummy or t.dummy) and len(part):
            part.soft[0] = False
        if t.dummy:
            # The dummy space is a byte of the teacher's first token, before those of the text.
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
        key=hashlib.sha256(repr(content).encode()).hexdigest(),
        text_bytes=sum(len(text.encode()) for text in texts),
        student_ids=student.ids,
        teacher_ids=teacher.ids,
        student_scored=student.scored,
        teacher_scored=teacher.scored,
        is_end=ending,
        alignment=alignment,
    )


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
