"""Encode the same text for the student and an expert, each in its own chat format and tokens, with
the scored bytes (the assistant's turns, or the document) aligned.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from engine.chat_tools import to_json
from engine.distill.align.chat_blocks import chat_blocks
from engine.distill.align.chat_encoder import ChatEncoder
from engine.distill.align.document_blocks import document_blocks
from engine.distill.align.text_block import EncodedBlock, EncodedExample, TextBlock
from engine.text.examples import Example, Message

__all__ = [
    "LENGTH_STEP",
    "MIN_TEACHER_CONTEXT",
    "BlockEncoder",
    "ChatEncoder",
    "EncodedBlock",
    "EncodedExample",
    "TextBlock",
    "normalise",
]

LENGTH_STEP = 64
"""Batch lengths are rounded up to a multiple: a CPU compiles its bf16 kernels for each length."""
MIN_TEACHER_CONTEXT = 2048
"""Tokens that an expert may use for a block, even where the student's rows are shorter."""
NOT_UNICODE = "it is not valid Unicode"
EMPTY_TEXT = "the text is empty"
UNEXPECTED = "it cannot be encoded"


def normalise(example: Example) -> Example:
    """The example in Unicode NFC."""
    if example.messages is None:
        return msgspec.structs.replace(example, text=_nfc(example.text or ""))
    return msgspec.structs.replace(example, messages=tuple(map(_nfc_message, example.messages)))


def _require_unicode(example: Example) -> None:
    """Raises UnicodeEncodeError for half of a surrogate pair."""
    if example.text is not None:
        example.text.encode()
    for message in example.messages or ():
        message.content.encode()
        (message.reasoning_content or "").encode()
        for call in message.tool_calls:
            to_json([call.name, call.arguments]).encode()
    if example.tools:
        to_json(example.tools).encode()


def _nfc_message(message: Message) -> Message:
    changed: dict[str, Any] = {"content": _nfc(message.content)}
    if message.reasoning_content:
        changed["reasoning_content"] = _nfc(message.reasoning_content)
    if message.tool_calls:
        changed["tool_calls"] = tuple(
            msgspec.structs.replace(call, name=_nfc(call.name), arguments=_nfc_json(call.arguments))
            for call in message.tool_calls
        )
    return msgspec.structs.replace(message, **changed)


def _nfc_json(value: Any) -> Any:
    if isinstance(value, str):
        return _nfc(value)
    if isinstance(value, dict):
        return {_nfc_json(key): _nfc_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nfc_json(item) for item in value]
    return value


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


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

    def encode(self, example: Example) -> EncodedExample:
        """The blocks of one example, and the reason where it is not, or only partly, learnt.

        A document that is too long for a block is split at white space, and so is an answer; only
        the last piece is complete. A conversation that is too long is split between its turns.
        """
        most = self.max_teacher_tokens or max(self.max_seq_len, MIN_TEACHER_CONTEXT)
        arguments = self.student, self.teacher, (self.max_seq_len, most), self.trust_end
        try:
            _require_unicode(example)
            example = normalise(example)
            if example.messages is not None:
                return chat_blocks(example, *arguments)
            if not example.text:
                return EncodedExample([], EMPTY_TEXT)
            return document_blocks(example.text, example.complete, *arguments)
        except UnicodeError as error:
            return EncodedExample([], NOT_UNICODE, str(error))
        except MemoryError:
            raise
        except Exception as error:  # one odd text must not end a run of days
            return EncodedExample([], UNEXPECTED, f"{type(error).__name__}: {error}")

    def copy_for_thread(self) -> BlockEncoder:
        """The same encoder for another thread, with its own copies of the tokenizers."""
        return replace(
            self,
            student=self.student.copy_for_thread(),
            teacher=self.teacher.copy_for_thread(),
        )
