"""Encode text for one model: context, answers and documents, in its chat format and tokens.

Shapes: S tokens, N scored positions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerFast

from engine.chat import ChatRenderer
from engine.chat_forms import ChatForm, Tools
from engine.distill.align.vocabulary import ByteVocabulary
from engine.text.examples import Message


@dataclass(frozen=True)
class EncodedSpan:
    """The tokens of one scored span, and the number of bytes that each covers.

    Attributes:
        ids: (n,) int64.
        lengths: (n,) int64, bytes of the span only.
        dummy: whether the first token includes a space before the span in addition: SentencePiece's
            dummy space at the start of a document, or the space that a chat template writes.
        in_chat: whether that space is the template's.
    """

    ids: np.ndarray
    lengths: np.ndarray
    dummy: bool = False
    in_chat: bool = False


@dataclass
class ModelText:
    """A block in one model's tokens, while it is made.

    Attributes:
        pieces: ids of context and spans, in their order.
        size: tokens in the pieces.
        scored: indices of the scored tokens, ends of turn included.
        spans: the scored spans.
    """

    pieces: list[np.ndarray] = field(default_factory=list)
    size: int = 0
    scored: list[np.ndarray] = field(default_factory=list)
    spans: list[EncodedSpan] = field(default_factory=list)

    def add_context(self, ids: np.ndarray) -> None:
        """Add tokens that are not scored."""
        self.pieces.append(ids)
        self.size += len(ids)

    def add_span(self, span: EncodedSpan) -> None:
        """Add a scored span."""
        self.pieces.append(span.ids)
        self.scored.append(np.arange(self.size, self.size + len(span.ids)))
        self.size += len(span.ids)
        self.spans.append(span)

    def add_end(self, end_id: int) -> None:
        """Add a scored end of turn."""
        self.pieces.append(np.array([end_id]))
        self.scored.append(np.array([self.size]))
        self.size += 1

    @property
    def ids(self) -> np.ndarray:
        """(S,) int64."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.pieces]).astype(np.int64)

    @property
    def scored_ids(self) -> np.ndarray:
        """(N,) int64 indices into `ids`."""
        return np.concatenate([np.zeros(0, dtype=np.int64), *self.scored]).astype(np.int64)


class ChatEncoder:
    """Encodes text for one model: its tokenizer, chat format and end-of-turn tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        renderer: ChatRenderer,
        end_ids: Sequence[int],
        vocab_size: int | None = None,
        *,
        as_generated: bool = False,
    ) -> None:
        """
        Args:
            renderer: renders conversations in the model's chat format.
            end_ids: tokens that end a turn; the first is the one used when encoding.
            vocab_size: rows of the embedding matrix, where it has more than the tokenizer.
            as_generated: an answer always follows the generation prompt, as when the model answers
                by itself. Else it follows what the template writes before an answer.
        """
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.end_ids = tuple(end_ids)
        self.as_generated = as_generated
        self.vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, vocab_size)
        bos = tokenizer.bos_token_id
        self.document_start = bos if bos is not None else self.end_ids[0]
        probe = tokenizer("a").input_ids
        self._adds_bos = bos is not None and bool(probe) and probe[0] == bos

    def copy_for_thread(self) -> ChatEncoder:
        """The same encoder for another thread, with its own copy of the tokenizer."""
        copied = copy.copy(self)
        copied.tokenizer = copy.deepcopy(self.tokenizer)
        copied.renderer = self.renderer.with_tokenizer(copied.tokenizer)
        return copied

    def prompt(
        self,
        form: ChatForm,
        messages: Sequence[Message],
        tools: Tools | None,
        thinks: bool,
    ) -> tuple[str, str, str]:
        """Before the next answer: the generation prompt, the text that precedes the answer, and the
        white space between the answer and its end token.

        thinks: whether the answer begins with a thought. Raises ChatRefused.
        """
        prompt = self.renderer.render(form, messages, tools)
        opening, closing = self.renderer.opening(form, messages, tools, prompt, thinks)
        if self.as_generated and opening != prompt + " ":
            # Only the start of a thought may be a part of the answer instead of the prompt.
            opening = opening if thinks and prompt.startswith(opening) else prompt
        return prompt, opening, closing

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

    def encode_answer(
        self, context: str, answer: str, first: bool
    ) -> tuple[np.ndarray, EncodedSpan] | None:
        """Ids of the context, and the scored tokens of the answer after it; None as `encode_span`.

        A space at the end of the context is encoded with the answer, as the model would write it:
        in most tokenizers it is a part of the first word's token.
        """
        if not context.endswith(" "):
            span = self.encode_span(answer)
            return None if span is None else (self.encode_context(context, first), span)
        ids = self.encode_context(context[:-1], first)
        span = self.encode_span(" " + answer if answer else "")
        if span is None or not answer:
            return None if span is None else (ids, span)
        if span.lengths[0] == 1:  # the space is a token by itself
            ids = np.concatenate([ids, span.ids[:1]])
            return ids, EncodedSpan(span.ids[1:], span.lengths[1:])
        lengths = span.lengths.copy()
        lengths[0] -= 1
        return ids, EncodedSpan(span.ids, lengths, dummy=True, in_chat=True)

    def encode_document(self, text: str, complete: bool) -> ModelText | None:
        """A document, with an end token when it is complete; None where bytes are lost."""
        span = self.encode_span(text, start=True)
        if span is None or not len(span.ids):
            return None
        encoded = ModelText()
        encoded.add_context(np.array([self.document_start]))
        encoded.add_span(span)
        if complete:
            encoded.add_end(self.end_ids[0])
        return encoded
