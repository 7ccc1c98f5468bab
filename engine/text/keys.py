"""Digests that identify texts: equal texts have equal digests, whatever file or form they have."""

from __future__ import annotations

import hashlib
import unicodedata

import msgspec

from engine.text.examples import Example, Message


def example_key(example: Example) -> str:
    """Digest of an example's text in Unicode NFC; the same for every expert."""
    messages = None
    if example.messages is not None:
        messages = tuple(_normalised(message) for message in example.messages)
    text = None if example.text is None else unicodedata.normalize("NFC", example.text)
    parts: list[object] = [messages, text]
    if example.tools:
        parts.append(example.tools)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _normalised(message: Message) -> Message:
    content = unicodedata.normalize("NFC", message.content)
    if content == message.content and not message.reasoning_content:
        return message
    thought = message.reasoning_content
    return msgspec.structs.replace(
        message,
        content=content,
        reasoning_content=thought and unicodedata.normalize("NFC", thought),
    )
