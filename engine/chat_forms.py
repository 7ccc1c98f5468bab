"""The forms in which a chat template gets a conversation, and a check that it renders all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.chat_tools import reasoning_as_text, to_json, tools_as_text
from engine.text.examples import Message, ToolCall

Tools = Sequence[dict[str, Any]]

_ID_LENGTH = 9
"""Mistral's templates refuse ids of calls of another length."""


@dataclass(frozen=True)
class ChatForm:
    """What has to be done to a conversation before a template renders it completely."""

    text_tools: bool = False
    """Tools, calls and results become text."""
    text_reasoning: bool = False
    """Reasoning becomes a part of the answer's text."""
    fold_system: bool = False
    """System turns are put before the first user turn."""
    join_users: bool = False
    """User turns in a row become one."""
    drop_opening: bool = False
    """Assistant turns before the first user turn are left out."""

    def apply(self, messages: Sequence[Message], tools: Tools | None) -> list[Message]:
        """The messages as the template reads them."""
        turns = list(messages)
        if self.text_tools:
            turns = tools_as_text(turns, tools)
        if self.text_reasoning:
            turns = reasoning_as_text(turns)
        if self.fold_system:
            turns = fold_system(turns)
        if self.drop_opening:
            while (n := opening_turn(turns)) is not None:
                del turns[n]
        return _join_users(turns) if self.join_users else turns


PLAIN = ChatForm()


def as_dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as transformers' templates read them."""
    chat: list[dict[str, Any]] = []
    calls: list[ToolCall] = []
    results = 0
    for message in messages:
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning_content:
            turn["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            calls, results = list(message.tool_calls), 0
            turn["tool_calls"] = [
                {
                    "type": "function",
                    "id": _call_id(call.id, n),
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for n, call in enumerate(calls)
            ]
        if message.role == "tool":
            call = calls[results] if results < len(calls) else None
            turn["tool_call_id"] = _call_id(message.tool_call_id or (call and call.id), results)
            if name := message.name or (call and call.name):
                turn["name"] = name
            results += 1
        elif message.name:
            turn["name"] = message.name
        chat.append(turn)
    return chat


def _call_id(given: str | None, number: int) -> str:
    """The id of a call, in the length that all templates take."""
    if given and len(given) == _ID_LENGTH and given.isascii() and given.isalnum():
        return given
    if not given:
        return f"call{number:05d}"
    return hashlib.sha256(given.encode(errors="replace")).hexdigest()[:_ID_LENGTH]


def missing_part(text: str, messages: Sequence[Message], tools: Tools | None) -> str:
    """What the rendered text lacks; "" where it has every part.

    White space around a turn may be missing, and so may thoughts of earlier turns.
    """
    for tool in tools or ():
        described = tool.get("function", tool)
        name = described.get("name") if isinstance(described, dict) else None
        if not isinstance(name, str) or name not in text:
            return f"the tool {name!r} is missing"
    position = 0
    for number, message in enumerate(messages, start=1):
        content = message.content.rpartition("</think>")[2].strip()
        found = text.find(content, position)
        if found < 0:
            found = text.find(content)
        if found < 0 and message.role == "tool":
            found = text.find(to_json(content)[1:-1])  # Llama 3 writes results as JSON strings
        if found < 0:
            return f"turn {number} ({message.role}) is missing"
        position = found + len(content)
        for call in message.tool_calls:
            if call.name not in text or to_json(call.arguments) not in text:
                return f"turn {number}: the call of {call.name} is missing"
    return ""


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system turns: their text is put before the first user turn."""
    system = [m.content for m in messages if m.role == "system"]
    others = [m for m in messages if m.role != "system"]
    for n, message in enumerate(others):
        if system and message.role == "user":
            content = "\n\n".join([*system, message.content])
            others[n] = msgspec.structs.replace(message, content=content)
            break
    return others


def _join_users(messages: Sequence[Message]) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        if joined and message.role == "user" == joined[-1].role:
            content = f"{joined.pop().content}\n\n{message.content}"
            message = msgspec.structs.replace(message, content=content)
        joined.append(message)
    return joined


def opening_turn(messages: Sequence[Message]) -> int | None:
    """Index of the assistant turn that opens the conversation; None where a user does."""
    for n, message in enumerate(messages):
        if message.role != "system":
            return n if message.role == "assistant" else None
    return None
