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

from engine.chat import ChatRefused
from engine.distill.align.answers import (
    Answer,
    EncodedAnswer,
    NotLearnt,
    Prompt,
    Side,
    is_too_long,
    read_answer,
    split_answer,
)
from engine.distill.align.block_building import ScoredText, build_block
from engine.distill.align.chat_encoder import ChatEncoder, ModelText
from engine.distill.align.text_block import EncodedExample, TextBlock
from engine.text.examples import Example, Message

ASSISTANT_OPENS = "the assistant opens the conversation"
NOTHING_TO_LEARN = "no answer has a weight"
EMPTY_ANSWER = "the answer is empty"

_CONTEXT_CHARS = 8
"""Characters of earlier turns for each token of the limit that are tried as context."""


@dataclass
class _OpenBlock:
    """A block that answers are added to.

    Attributes:
        start: turn at which its context begins.
        texts: its tokens, for each model.
        last: the text before the last answer, for each model.
        answers: those that it has.
    """

    start: int
    texts: list[ModelText] = field(default_factory=lambda: [ModelText(), ModelText()])
    last: list[Prompt] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def add(self, answer: Answer, encoded: EncodedAnswer) -> None:
        """Add an answer after the last one."""
        for n, text in enumerate(self.texts):
            context = encoded.context[n]
            if self.answers:
                text.add_context(encoded.closing[n])
                text.add_end(int(context[0]))
                context = context[1:]
            text.add_context(context)
            text.add_span(encoded.spans[n])
        self.last = encoded.prompts
        self.answers.append(answer)


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
    sides = Side("student", student, limits[0]), Side("expert", teacher, limits[1])
    return _Conversation(example, sides, trust_end).encode()


class _Conversation:
    """One conversation while its blocks are made."""

    def __init__(self, example: Example, sides: tuple[Side, Side], trust_end: bool) -> None:
        messages = example.messages or ()
        turns = [n for n, m in enumerate(messages) if m.role == "assistant"]
        self._turns = [n for n in turns if messages[n].weight > 0]
        stop = self._turns[-1] + 1 if self._turns else 0
        self._messages: Sequence[Message] = messages[:stop]
        self._incomplete = -1 if example.complete else turns[-1]
        self._tools = example.tools
        self._sides = sides
        self._trust_end = trust_end
        self._system = 0  # turns at the start that every block has
        while self._system < stop and messages[self._system].role == "system":
            self._system += 1
        self._digest = hashlib.sha256(repr((self._messages, self._tools)).encode()).hexdigest()
        self._open: _OpenBlock | None = None
        self._blocks: list[TextBlock] = []

    def encode(self) -> EncodedExample:
        """All answers, in their order."""
        if not self._turns:
            return EncodedExample([], NOTHING_TO_LEARN)
        for side in self._sides:
            try:
                side.form = side.encoder.renderer.form(self._messages, self._tools)
            except ChatRefused as refused:
                return EncodedExample([], side.refusal(refused), refused.words)
        missed: list[tuple[int, NotLearnt]] = []
        for turn in self._turns:
            try:
                self._add(turn)
            except NotLearnt as error:
                self._close()
                missed.append((turn, error))
        self._close()
        if not missed:
            return EncodedExample(self._blocks)
        turn, first = missed[0]
        detail = f"{len(missed)} of {len(self._turns)} answers not learnt; turn {turn + 1}"
        detail += f": {first.detail}" if first.detail else ""
        return EncodedExample(self._blocks, first.problem, detail)

    def _add(self, turn: int) -> None:
        if not any(m.role in ("user", "tool") for m in self._messages[:turn]):
            raise NotLearnt(ASSISTANT_OPENS)
        expert = self._sides[1].encoder.renderer
        answer = read_answer(self._messages[turn], turn, turn != self._incomplete, expert)
        if not answer.text and not answer.ends:
            raise NotLearnt(EMPTY_ANSWER)
        if self._open is not None:
            encoded = self._continued(self._open, answer)
            if encoded is not None and encoded.fits(self._open.texts, self._sides, answer.ends):
                self._open.add(answer, encoded)
                return
            self._close()
        self._begin(answer)

    def _window(self, start: int, turn: int) -> Sequence[Message]:
        """The turns before an answer, from `start` on, with the system turns at the beginning."""
        if start <= self._system:
            return self._messages[:turn]
        return [*self._messages[: self._system], *self._messages[start:turn]]

    def _continued(self, block: _OpenBlock, answer: Answer) -> EncodedAnswer | None:
        """The answer after the last one of the block; None where a template renders the text
        before it in another way than the block has it."""
        encoded = EncodedAnswer()
        window = self._window(block.start, answer.turn)
        for n, side in enumerate(self._sides):
            prompt = side.prompt(window, self._tools, answer.thinks)
            rest = _rest(prompt.opening, block.last[n], block.answers[-1].text)
            if rest is None:
                return None
            closing = block.last[n].closing
            closing = closing if rest.startswith(closing) else ""
            context, span = side.encode(rest[len(closing) :], answer.text, first=False)
            if not len(context) or context[0] not in side.encoder.end_ids:
                # The template wrote no end of turn: the turn needs one.
                context = np.concatenate([[side.encoder.end_ids[0]], context])
            encoded.add(prompt, context, span, side.closing_ids(closing))
        return encoded

    def _opened(self, start: int, answer: Answer, text: str) -> EncodedAnswer:
        """A text at the beginning of a block, after the turns from `start` on."""
        encoded = EncodedAnswer()
        window = self._window(start, answer.turn)
        for side in self._sides:
            prompt = side.prompt(window, self._tools, answer.thinks)
            context, span = side.encode(prompt.opening, text, first=True)
            encoded.add(prompt, context, span, np.zeros(0, dtype=np.int64))
        return encoded

    def _begin(self, answer: Answer) -> None:
        """Begin a block with the answer, after as many of the earlier turns as fit."""
        starts = self._starts(answer.turn)
        if not is_too_long(answer.text, self._sides):
            found = self._first_fitting(starts, answer, whole=True)
            if found is not None:
                self._open = _OpenBlock(found[0])
                self._open.add(answer, found[1])
                return
        found = self._first_fitting(starts, answer, whole=False)
        start, opened = found or (starts[-1], self._opened(starts[-1], answer, ""))
        for piece, texts in split_answer(answer, opened, self._sides):
            self._finish(_OpenBlock(start, texts, opened.prompts, [piece]))

    def _starts(self, turn: int) -> list[int]:
        """Turns at which the context of an answer may begin: the first, and those of users."""
        users = [n for n in range(self._system, turn) if self._messages[n].role == "user"]
        starts = sorted({0, *users})
        most = _CONTEXT_CHARS * max(side.limit for side in self._sides)
        edges = [*starts, turn]
        chars, kept = 0, starts[-1:]
        for n in range(len(starts) - 1, -1, -1):
            chars += sum(len(m.content) for m in self._messages[edges[n] : edges[n + 1]])
            if chars > most:
                break
            kept = starts[n:]
        return kept

    def _first_fitting(
        self, starts: Sequence[int], answer: Answer, *, whole: bool
    ) -> tuple[int, EncodedAnswer] | None:
        """The earliest start with which a block has room for the answer; with `whole` for all of
        it, else the context may fill half of the block."""
        low, high, step = 0, len(starts), len(starts)
        found: tuple[int, EncodedAnswer] | None = None
        while low < high:
            # The first start first, as mostly everything fits; then from the last one backwards.
            n = max(low, high - step)
            encoded = self._opened(starts[n], answer, answer.text if whole else "")
            if whole:
                fits = encoded.fits([ModelText(), ModelText()], self._sides, answer.ends)
            else:
                contexts = zip(encoded.context, self._sides, strict=True)
                fits = all(2 * len(context) <= side.limit for context, side in contexts)
            if fits:
                found, high, step = (starts[n], encoded), n, 2 * step
            else:
                step = 1 if found is None else (high - n) // 2
                low, step = n + 1, max(1, step)
        return found

    def _close(self) -> None:
        block, self._open = self._open, None
        if block is not None:
            self._finish(block)

    def _finish(self, block: _OpenBlock) -> None:
        if block.answers[-1].ends:
            for side, text, prompt in zip(self._sides, block.texts, block.last, strict=True):
                text.add_context(side.closing_ids(prompt.closing))
                text.add_end(side.encoder.end_ids[0])
        texts = [
            ScoredText(answer.ends or n < len(block.answers) - 1, answer.marks)
            for n, answer in enumerate(block.answers)
        ]
        place = f"{self._digest} {block.answers[0].turn} {len(self._blocks)}"
        key = hashlib.sha256(place.encode()).hexdigest()
        self._blocks.append(
            build_block(key, block.texts[0], block.texts[1], texts, self._trust_end)
        )


def _rest(text: str, last: Prompt, answer: str) -> str | None:
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
