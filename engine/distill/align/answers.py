"""Encode an answer for both models: after its context, and in pieces where it is too long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.chat import ChatRefused, ChatRenderer
from engine.chat_forms import PLAIN, ChatForm, Tools
from engine.chat_tools import answer_parts
from engine.distill.align.chat_encoder import ChatEncoder, EncodedSpan, ModelText
from engine.distill.align.document_blocks import BYTES_LOST, white_space_before
from engine.text.examples import Message

PROMPT_TOO_LONG = "the prompt is longer than the context"

MAX_TOKEN_CHARS = 16
"""A text with more characters for each token of a limit is taken for too long without a try."""
_CHARS_PER_TOKEN = 6
"""More than a token of ordinary text has."""
_MIN_ROOM = 8
"""Tokens for an answer that a prompt must leave in a block."""


class NotLearnt(Exception):
    """An answer that is not learnt.

    Attributes:
        problem: short constant reason.
        detail: the particulars.
    """

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem, detail)
        self.problem, self.detail = problem, detail


@dataclass(frozen=True)
class Answer:
    """An answer, or a piece of one.

    Attributes:
        turn: its number in the conversation.
        text: what is learnt.
        thinks: whether it begins with, or has, a thought.
        ends: whether an end of turn follows.
        marks: byte ranges of marks that the expert writes in another way.
    """

    turn: int
    text: str
    thinks: bool
    ends: bool
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Prompt:
    """The text before an answer, for one model; see `ChatEncoder.prompt`."""

    generation: str
    opening: str
    closing: str


@dataclass
class Side:
    """One of the two models: its name in messages, the tokens of a block, and its chat form."""

    title: str
    encoder: ChatEncoder
    limit: int
    form: ChatForm = PLAIN

    def prompt(self, window: Sequence[Message], tools: Tools | None, thinks: bool) -> Prompt:
        """The text before the next answer; raises NotLearnt."""
        try:
            return Prompt(*self.encoder.prompt(self.form, window, tools, thinks))
        except ChatRefused as refused:
            raise NotLearnt(self.refusal(refused), refused.words) from refused

    def refusal(self, refused: ChatRefused) -> str:
        """The reason for the user."""
        return f"the {self.title}'s chat template {refused.reason}"

    def closing_ids(self, closing: str) -> np.ndarray:
        """The white space that the template writes between an answer and its end token.

        A student is trained to end at once, as it has to when it answers by itself.
        """
        return self.encoder.vocabulary.encode("" if self.encoder.as_generated else closing)

    def encode(self, context: str, answer: str, first: bool) -> tuple[np.ndarray, EncodedSpan]:
        """Ids of the context, and the tokens of the answer after it; raises NotLearnt."""
        encoded = self.encoder.encode_answer(context, answer, first)
        if encoded is None:
            raise NotLearnt(BYTES_LOST, f"in the {self.title}'s tokens: {answer[:30]!r}")
        return encoded


@dataclass
class EncodedAnswer:
    """An answer in the tokens of both models; each list has one entry for each model.

    Attributes:
        closing: white space after the answer before it, in the same block.
        context: ids from there to the answer; the first ends the turn before, in the same block.
        spans: the answer's tokens.
        prompts: the text before the answer.
    """

    closing: list[np.ndarray] = field(default_factory=list)
    context: list[np.ndarray] = field(default_factory=list)
    spans: list[EncodedSpan] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)

    def add(
        self, prompt: Prompt, context: np.ndarray, span: EncodedSpan, closing: np.ndarray
    ) -> None:
        """Add one model's encoding."""
        self.prompts.append(prompt)
        self.context.append(context)
        self.spans.append(span)
        self.closing.append(closing)

    def fits(self, texts: Sequence[ModelText], sides: Sequence[Side], ends: bool) -> bool:
        """Whether the blocks have room for the answer, and for its end of turn."""
        for n, (text, side) in enumerate(zip(texts, sides, strict=True)):
            size = len(self.closing[n]) + len(self.context[n]) + len(self.spans[n].ids)
            end = len(self.prompts[n].closing) + 1 if ends else 0
            if text.size + size + end > side.limit:
                return False
        return True


def read_answer(message: Message, turn: int, ends: bool, expert: ChatRenderer) -> Answer:
    """The answer of an assistant's turn, with the marks that the expert writes in another way."""
    marks: list[tuple[int, int]] = []
    text, position = "", 0
    for part in answer_parts(message):
        size = len(part.text.encode())
        # The template is probed only where a conversation has calls or thoughts.
        if (part.kind == "call" and not expert.writes_calls) or (
            part.kind == "think" and not expert.writes_reasoning
        ):
            marks.append((position, position + size))
        text, position = text + part.text, position + size
    return Answer(turn, text, "</think>" in text, ends, tuple(marks))


def is_too_long(text: str, sides: Sequence[Side]) -> bool:
    """Whether an answer fits into no block, whatever its context is.

    An answer that is hardly too long is found out with its context.
    """
    limit = min(side.limit for side in sides)
    if len(text) <= 2 * limit:
        return False
    if len(text) > MAX_TOKEN_CHARS * limit:
        return True
    spans = ((side, side.encoder.encode_span(text)) for side in sides)
    return any(span is not None and len(span.ids) >= side.limit for side, span in spans)


def split_answer(
    answer: Answer, opened: EncodedAnswer, sides: Sequence[Side]
) -> Iterator[tuple[Answer, list[ModelText]]]:
    """Consecutive pieces of an answer that is too long for a block, with their context: the prompt,
    and after the first piece the end of the piece before.

    opened: the prompt, encoded. Raises NotLearnt.
    """
    first, done, most = 0, 0, _CHARS_PER_TOKEN * max(side.limit for side in sides)
    contexts = opened.context
    while first < len(answer.text):
        rooms = _rooms(sides, contexts, opened.prompts)
        stop, spans = _fitting_piece(answer.text, first, sides, rooms, most)
        most = max(64, (stop - first) * 5 // 4)  # the next piece is about as long
        texts = [ModelText(), ModelText()]
        for n, side in enumerate(sides):
            context, span = contexts[n], spans[n]
            if first == 0:
                opening = opened.prompts[n].opening
                context, span = side.encode(opening, answer.text[:stop], first=True)
            texts[n].add_context(context)
            texts[n].add_span(span)
        ends = answer.ends and stop == len(answer.text)
        marks = tuple((a - done, b - done) for a, b in answer.marks)
        yield Answer(answer.turn, answer.text[first:stop], answer.thinks, ends, marks), texts
        done += int(spans[0].lengths.sum())
        first = stop
        contexts = [
            _tail(side, context, span)
            for side, context, span in zip(sides, opened.context, spans, strict=True)
        ]


def _rooms(
    sides: Sequence[Side], contexts: Sequence[np.ndarray], prompts: Sequence[Prompt]
) -> list[int]:
    """Tokens that the contexts leave to an answer; raises NotLearnt where that is too little."""
    rooms: list[int] = []
    for side, context, prompt in zip(sides, contexts, prompts, strict=True):
        rooms.append(side.limit - len(context) - len(prompt.closing) - 2)
        if rooms[-1] < _MIN_ROOM:
            size = f"{len(context):,} tokens of the {side.title}"
            raise NotLearnt(PROMPT_TOO_LONG, f"{size}, at most {side.limit:,}")
    return rooms


def _tail(side: Side, opening: np.ndarray, span: EncodedSpan) -> np.ndarray:
    """The context of the next piece: the prompt, where it is not too long, and the end of the piece
    before."""
    if 2 * len(opening) > side.limit:
        opening = np.array([side.encoder.document_start])
    return np.concatenate([opening, span.ids[-(side.limit // 4) :]])


def _fitting_piece(
    text: str, first: int, sides: Sequence[Side], rooms: Sequence[int], most: int
) -> tuple[int, list[EncodedSpan]]:
    """End of the piece of the text from `first` on that fits into the rooms, and its tokens.

    most: characters that are tried. Raises NotLearnt.
    """
    stop = min(len(text), first + _CHARS_PER_TOKEN * min(rooms), first + most)
    while True:
        if stop < len(text):
            cut = white_space_before(text, (first + stop) // 2 + 1, stop)
            stop = cut if cut > first else stop
        spans = [side.encode("", text[first:stop], first=False)[1] for side in sides]
        share = min(room / max(1, len(s.ids)) for room, s in zip(rooms, spans, strict=True))
        if share >= 1:
            return stop, spans
        if stop == first + 1:
            raise NotLearnt(PROMPT_TOO_LONG, "one character does not fit")
        stop = first + max(1, int((stop - first) * share * 0.95))
