"""Encode a conversation as blocks: every answer once, in the context that the models have.

A block holds as many answers in a row as fit, and as are read in the same way later as when they
were written. An answer that a template renders in another way in an earlier turn (Qwen 3 leaves out
its thought) ends the block; the next answer begins a new one, with the earlier turns as context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.chat import PLAIN, ChatForm, ChatRefused
from engine.chat_tools import answer_parts
from engine.distill.align.block_building import ScoredText, build_block
from engine.distill.align.chat_encoder import ChatEncoder, EncodedSpan, ModelText
from engine.distill.align.document_blocks import BYTES_LOST, white_space_before
from engine.distill.align.text_block import EncodedExample, TextBlock
from engine.text.examples import Example, Message

ASSISTANT_OPENS = "the assistant opens the conversation"
NOTHING_TO_LEARN = "no answer has a weight"
EMPTY_ANSWER = "the answer is empty"
PROMPT_TOO_LONG = "the prompt is longer than the context"

_MAX_TOKEN_CHARS = 16
"""A context with more characters for each token of the limit is not tried."""
_MIN_ROOM = 8
"""Tokens for an answer that a prompt must leave in a block."""


class _NotLearnt(Exception):
    def __init__(self, problem: str, detail: str = "") -> None:
        self.problem, self.detail = problem, detail


@dataclass(frozen=True)
class _Answer:
    """An answer to learn: its turn, its text, and the byte ranges of its marks."""

    turn: int
    text: str
    thinks: bool
    ends: bool
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Prompt:
    """The text before an answer, for one model; see `ChatEncoder.prompt`."""

    generation: str
    opening: str
    closing: str


@dataclass
class _Side:
    """One of the two models."""

    title: str
    encoder: ChatEncoder
    limit: int
    form: ChatForm = PLAIN


@dataclass
class _OpenBlock:
    """A block that answers are added to; `texts` and `last` have one entry for each model."""

    start: int
    texts: list[ModelText]
    last: list[_Prompt]
    answers: list[_Answer] = field(default_factory=list)


class _Pieces:
    """The two encodings of the next answer: tokens before it, and its span."""

    def __init__(self) -> None:
        self.closing: list[np.ndarray] = []
        self.context: list[np.ndarray] = []
        self.spans: list[EncodedSpan] = []
        self.prompts: list[_Prompt] = []

    def size(self, side: int) -> int:
        parts = (*self.closing[side : side + 1], self.context[side], self.spans[side].ids)
        return sum(len(part) for part in parts)


def chat_blocks(
    example: Example,
    student: ChatEncoder,
    teacher: ChatEncoder,
    limits: tuple[int, int],
    trust_end: bool,
) -> EncodedExample:
    """The blocks of a conversation, and the reason why an answer is not learnt.

    limits: tokens of student and expert in a block, at most.
    """
    return _Conversation(example, student, teacher, limits, trust_end).encode()


class _Conversation:
    def __init__(
        self,
        example: Example,
        student: ChatEncoder,
        teacher: ChatEncoder,
        limits: tuple[int, int],
        trust_end: bool,
    ) -> None:
        messages = example.messages or ()
        turns = [n for n, m in enumerate(messages) if m.role == "assistant"]
        scored = [n for n in turns if messages[n].weight > 0]
        self._turns = scored
        self._messages: Sequence[Message] = messages[: scored[-1] + 1] if scored else ()
        self._incomplete = -1 if example.complete else turns[-1]
        self._tools = example.tools
        self._sides = (
            _Side("student", student, limits[0]),
            _Side("expert", teacher, limits[1]),
        )
        self._trust_end = trust_end
        self._system = 0  # turns at the start that every block has
        while self._system < len(self._messages) and self._messages[self._system].role == "system":
            self._system += 1
        self._digest = hashlib.sha256(repr((self._messages, self._tools)).encode()).hexdigest()
        self._open: _OpenBlock | None = None
        self._blocks: list[TextBlock] = []
        self._missed: list[tuple[int, str, str]] = []

    def encode(self) -> EncodedExample:
        """All answers, in their order."""
        if not self._turns:
            return EncodedExample([], NOTHING_TO_LEARN)
        for side in self._sides:
            try:
                side.form = side.encoder.renderer.form(self._messages, self._tools)
            except ChatRefused as refused:
                return EncodedExample([], _refusal(side, refused), refused.words)
        for turn in self._turns:
            try:
                self._add(turn)
            except _NotLearnt as error:
                self._close()
                self._missed.append((turn, error.problem, error.detail))
        self._close()
        if not self._missed:
            return EncodedExample(self._blocks)
        turn, problem, detail = self._missed[0]
        count = f"{len(self._missed)} of {len(self._turns)} answers"
        where = f"turn {turn + 1}"
        detail = f"{count} not learnt; {where}: {detail}" if detail else f"{count}; {where}"
        return EncodedExample(self._blocks, problem, detail)

    def _add(self, turn: int) -> None:
        before = self._messages[:turn]
        if not any(m.role in ("user", "tool") for m in before):
            raise _NotLearnt(ASSISTANT_OPENS)
        answer = self._answer(turn)
        if not answer.text and not answer.ends:
            raise _NotLearnt(EMPTY_ANSWER)
        if self._open is not None:
            pieces = self._continued(self._open, answer)
            if pieces is not None and self._fits(self._open.texts, pieces, answer):
                self._commit(self._open, pieces, answer)
                return
            self._close()
        self._begin(answer)

    def _answer(self, turn: int) -> _Answer:
        message = self._messages[turn]
        renderer = self._sides[1].encoder.renderer
        written = {"text": True, "call": renderer.writes_calls, "think": renderer.writes_reasoning}
        marks: list[tuple[int, int]] = []
        text, position = "", 0
        for part in answer_parts(message):
            size = len(part.text.encode())
            # Asked only for a conversation with calls or thoughts: a template is probed for it.
            if part.kind != "text" and not written[part.kind]:
                marks.append((position, position + size))
            text, position = text + part.text, position + size
        return _Answer(turn, text, "</think>" in text, turn != self._incomplete, tuple(marks))

    def _window(self, start: int, turn: int) -> Sequence[Message]:
        """The turns before an answer, from `start` on, with the system turns at the beginning."""
        if start <= self._system:
            return self._messages[:turn]
        return [*self._messages[: self._system], *self._messages[start:turn]]

    def _prompt(self, side: _Side, start: int, answer: _Answer) -> _Prompt:
        window = self._window(start, answer.turn)
        try:
            return _Prompt(*side.encoder.prompt(side.form, window, self._tools, answer.thinks))
        except ChatRefused as refused:
            raise _NotLearnt(_refusal(side, refused), refused.words) from refused

    def _continued(self, block: _OpenBlock, answer: _Answer) -> _Pieces | None:
        """The answer after the last one of the block; None where a template renders the text
        before it in another way than the block has it."""
        pieces = _Pieces()
        for n, side in enumerate(self._sides):
            prompt = self._prompt(side, block.start, answer)
            rest = _rest(prompt.opening, block.last[n], block.answers[-1].text)
            if rest is None:
                return None
            closing = block.last[n].closing
            closing = closing if rest.startswith(closing) else ""
            context, span = self._encoded(side, rest[len(closing) :], answer.text, first=False)
            if not len(context) or context[0] not in side.encoder.end_ids:
                # The template wrote no end of turn: the turn needs one.
                context = np.concatenate([[side.encoder.end_ids[0]], context])
            pieces.closing.append(side.encoder.vocabulary.encode(closing))
            pieces.context.append(context)
            pieces.spans.append(span)
            pieces.prompts.append(prompt)
        return pieces

    def _encoded(
        self, side: _Side, context: str, answer: str, first: bool
    ) -> tuple[np.ndarray, EncodedSpan]:
        encoded = side.encoder.encode_answer(context, answer, first)
        if encoded is None:
            raise _NotLearnt(BYTES_LOST, f"in the {side.title}'s tokens: {answer[:30]!r}")
        return encoded

    def _fits(self, texts: Sequence[ModelText], pieces: _Pieces, answer: _Answer) -> bool:
        sizes = [
            text.size + pieces.size(n) + self._end_size(pieces.prompts[n].closing, answer)
            for n, text in enumerate(texts)
        ]
        return all(size <= side.limit for size, side in zip(sizes, self._sides, strict=True))

    @staticmethod
    def _end_size(closing: str, answer: _Answer) -> int:
        return len(closing) + 1 if answer.ends else 0

    def _commit(self, block: _OpenBlock, pieces: _Pieces, answer: _Answer) -> None:
        for n, text in enumerate(block.texts):
            context = pieces.context[n]
            if block.answers:
                text.add_context(pieces.closing[n])
                text.add_end(int(context[0]))
                context = context[1:]
            text.add_context(context)
            text.add_span(pieces.spans[n])
        block.last = pieces.prompts
        block.answers.append(answer)

    def _begin(self, answer: _Answer) -> None:
        """Begin a block with the answer, after as many of the earlier turns as fit."""
        starts = self._starts(answer.turn)
        short = len(answer.text) <= _MAX_TOKEN_CHARS * min(side.limit for side in self._sides)
        if short and (found := self._first_fitting(starts, answer, whole=True)) is not None:
            start, pieces = found
            self._open = _OpenBlock(start, [ModelText(), ModelText()], pieces.prompts)
            self._commit(self._open, pieces, answer)
            return
        found = self._first_fitting(starts, answer, whole=False)
        start, pieces = found or (starts[-1], self._opened(starts[-1], answer, ""))
        self._split(answer, pieces)

    def _starts(self, turn: int) -> list[int]:
        """Turns at which the context of an answer may begin: the first, and those of users."""
        users = [n for n in range(self._system, turn) if self._messages[n].role == "user"]
        starts = sorted({0, *users})
        most = _MAX_TOKEN_CHARS * max(side.limit for side in self._sides)
        chars, kept = 0, starts[-1:]
        edges = [*starts, turn]
        for n in range(len(starts) - 1, -1, -1):
            chars += sum(len(m.content) for m in self._messages[edges[n] : edges[n + 1]])
            if chars > most:
                break
            kept = starts[n:]
        return kept

    def _first_fitting(
        self, starts: Sequence[int], answer: _Answer, *, whole: bool
    ) -> tuple[int, _Pieces] | None:
        """The earliest start with which the block has room for the answer; with `whole` for all of
        it, else the context may fill half of the block."""
        low, high = 0, len(starts)
        found: tuple[int, _Pieces] | None = None
        while low < high:
            # The first is tried first: mostly everything fits.
            n = low if found is None and low == 0 and high == len(starts) else (low + high) // 2
            pieces = self._opened(starts[n], answer, answer.text if whole else "")
            fits = (
                self._fits([ModelText(), ModelText()], pieces, answer)
                if whole
                else all(2 * pieces.size(k) <= side.limit for k, side in enumerate(self._sides))
            )
            if fits:
                found, high = (starts[n], pieces), n
            else:
                low = n + 1
        return found

    def _opened(self, start: int, answer: _Answer, text: str) -> _Pieces:
        pieces = _Pieces()
        for side in self._sides:
            prompt = self._prompt(side, start, answer)
            context, span = self._encoded(side, prompt.opening, text, first=True)
            pieces.context.append(context)
            pieces.spans.append(span)
            pieces.prompts.append(prompt)
        return pieces

    def _split(self, answer: _Answer, opened: _Pieces) -> None:
        """The answer in consecutive blocks, each with the end of the one before as context."""
        first, done = 0, 0
        contexts = opened.context
        while first < len(answer.text):
            rooms = [
                side.limit - len(context) - len(prompt.closing) - 2
                for side, context, prompt in zip(self._sides, contexts, opened.prompts, strict=True)
            ]
            for side, room, context in zip(self._sides, rooms, contexts, strict=True):
                if room < _MIN_ROOM:
                    size = f"{len(context):,} tokens of the {side.title}"
                    raise _NotLearnt(PROMPT_TOO_LONG, f"{size}, at most {side.limit:,}")
            stop, spans = self._fitting_piece(answer.text, first, rooms)
            texts = [ModelText(), ModelText()]
            for n, side in enumerate(self._sides):
                context, span = contexts[n], spans[n]
                if first == 0:
                    opening = opened.prompts[n].opening
                    context, span = self._encoded(side, opening, answer.text[:stop], first=True)
                texts[n].add_context(context)
                texts[n].add_span(span)
            size = int(spans[0].lengths.sum())
            piece = _Answer(
                turn=answer.turn,
                text=answer.text[first:stop],
                thinks=False,
                ends=answer.ends and stop == len(answer.text),
                marks=tuple((a - done, b - done) for a, b in answer.marks),
            )
            block = _OpenBlock(first, texts, opened.prompts, [piece])
            self._finish(block)
            contexts = [
                self._tail(side, context, span)
                for side, context, span in zip(self._sides, opened.context, spans, strict=True)
            ]
            first, done = stop, done + size

    @staticmethod
    def _tail(side: _Side, opening: np.ndarray, span: EncodedSpan) -> np.ndarray:
        """The context of the next piece of an answer: the prompt, where it is not too long, and the
        end of the piece before."""
        if 2 * len(opening) > side.limit:
            opening = np.array([side.encoder.document_start])
        return np.concatenate([opening, span.ids[-(side.limit // 4) :]])

    def _fitting_piece(
        self, text: str, first: int, rooms: Sequence[int]
    ) -> tuple[int, list[EncodedSpan]]:
        """End of the piece of the text from `first` on that fits into the rooms, and its tokens."""
        stop = min(len(text), first + 6 * min(rooms))
        while True:
            if stop < len(text):
                cut = white_space_before(text, (first + stop) // 2 + 1, stop)
                stop = cut if cut > first else stop
            spans: list[EncodedSpan] = []
            for side in self._sides:
                span = side.encoder.encode_span(text[first:stop])
                if span is None:
                    raise _NotLearnt(BYTES_LOST, f"in the {side.title}'s tokens")
                spans.append(span)
            share = min(
                room / max(1, len(span.ids)) for room, span in zip(rooms, spans, strict=True)
            )
            if share >= 1:
                return stop, spans
            if stop == first + 1:
                raise _NotLearnt(PROMPT_TOO_LONG, "one character does not fit")
            stop = first + max(1, int((stop - first) * share * 0.95))

    def _close(self) -> None:
        block, self._open = self._open, None
        if block is not None:
            self._finish(block)

    def _finish(self, block: _OpenBlock) -> None:
        last = block.answers[-1]
        if last.ends:
            for side, text, prompt in zip(self._sides, block.texts, block.last, strict=True):
                text.add_context(side.encoder.vocabulary.encode(prompt.closing))
                text.add_end(side.encoder.end_ids[0])
        texts = [
            ScoredText(answer.ends or n < len(block.answers) - 1, answer.marks)
            for n, answer in enumerate(block.answers)
        ]
        key = f"{self._digest} {block.start} {block.answers[0].turn}"
        self._blocks.append(
            build_block(
                hashlib.sha256(key.encode()).hexdigest(),
                block.texts[0],
                block.texts[1],
                texts,
                self._trust_end,
            )
        )


def _refusal(side: _Side, refused: ChatRefused) -> str:
    return f"the {side.title}'s chat template {refused.reason}"


def _rest(text: str, last: _Prompt, answer: str) -> str | None:
    """The text after the last answer of a block; None where `text` does not begin with the block.

    What the template itself writes before the last answer, and white space around an answer, may
    be missing in an earlier turn.
    """
    for before in dict.fromkeys((last.opening, last.generation)):
        if not text.startswith(before):
            continue
        for written in dict.fromkeys(
            (answer, answer.strip(), answer.lstrip(), answer.rstrip(), answer.strip("\n"))
        ):
            if text.startswith(written, len(before)):
                return text[len(before) + len(written) :]
    return None
