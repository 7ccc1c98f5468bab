"""Read the turns of a conversation as data sets write them: the OpenAI and Hugging Face form
(`role`, `content`) and ShareGPT's (`from`, `value`).

What a turn holds beyond text, reasoning and tool calls is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engine.text.examples import Message, Role, ToolCall


class Unreadable(ValueError):
    """A text that is not learnt.

    Attributes:
        reason: in a few words, the same for all texts with this problem.
        detail: what exactly is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail or reason


ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
"""The roles that are read, and what they are here."""
_CALL_ROLES = ("function_call", "tool_call")
"""Their turns hold nothing but the JSON of tool calls."""
MEDIA = ("image", "images", "audio", "audios", "video", "videos", "image_url", "input_audio")
_REFUSED = ("refusal", "channel", "recipient", "tools")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_TRAINED = ("train", "train_on_turn", "loss")
_TEXT_PARTS = ("text", "input_text", "output_text")


def read_turns(turns: object) -> tuple[Message, ...]:
    """The turns of a conversation; raises Unreadable."""
    if not isinstance(turns, list):
        raise Unreadable("conversation is not a list of turns")
    if not turns:
        raise Unreadable("conversation without turns")
    messages = tuple(_read_turn(turn, number) for number, turn in enumerate(turns, start=1))
    if not any(message.role == "assistant" for message in messages):
        raise Unreadable("no assistant turn", '"messages" has no assistant turn to train on')
    return messages


def _read_turn(turn: object, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise Unreadable("turn is not an object", f"turn {number} is not an object")
    try:
        return _message({str(key): value for key, value in turn.items()})
    except Unreadable as error:
        raise Unreadable(error.reason, f"turn {number}: {error.detail}") from None


def _message(turn: dict[str, Any]) -> Message:
    for key in (*MEDIA, *_REFUSED):
        if turn.get(key) not in (None, "", [], {}, False):
            raise Unreadable(
                "image, audio or video" if key in MEDIA else f"turn with {key}",
                f'"{key}" is not learnt',
            )
    named = turn.get("role") if turn.get("role") is not None else turn.get("from")
    if not isinstance(named, str):
        raise Unreadable("turn without a role")
    role = ROLES.get(named.strip().lower())
    if role is None:
        raise Unreadable("unknown role", f"unknown role {named[:40]!r}; known: {', '.join(ROLES)}")
    value = turn.get("content") if turn.get("content") is not None else turn.get("value")
    content, thought = _content(value)
    reasoning = _reasoning(turn) or thought
    calls = _tool_calls(turn)
    if named.strip().lower() in _CALL_ROLES:
        reasoning, content = _split_thought(content, reasoning)
        calls, content = (*calls, *_calls_of_text(content)), ""
    if role != "assistant" and (calls or reasoning):
        raise Unreadable(f"{'tool call' if calls else 'reasoning'} outside an assistant's turn")
    if value is None and not calls and not reasoning:
        raise Unreadable("turn without content")
    return Message(
        role,
        content,
        reasoning_content=reasoning or None,
        tool_calls=calls,
        name=_optional_text(turn, "name"),
        tool_call_id=_optional_text(turn, "tool_call_id"),
        weight=_weight(turn) if role == "assistant" else 1,
    )


def _content(value: object) -> tuple[str, str]:
    """Text and reasoning of a turn's content: a string, or a list of parts."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, list):
        raise Unreadable(
            "content is not text", f"content is not text but of type {_type_name(value)}"
        )
    texts: list[str] = []
    thoughts: list[str] = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind is None and isinstance(part, Mapping) and isinstance(part.get("text"), str):
            kind = "text"
        found = None
        if isinstance(part, Mapping) and kind in _TEXT_PARTS:
            found, target = part.get("text"), texts
        elif isinstance(part, Mapping) and kind in _REASONING:
            found, target = part.get(str(kind)) or part.get("text"), thoughts
        if not isinstance(found, str):
            media = kind in MEDIA or kind in ("input_image", "file", "input_file")
            raise Unreadable(
                "image, audio or video" if media else "content part that is not text",
                f"a part of type {str(kind)[:40]!r} is not learnt",
            )
        target.append(found)
    return "".join(texts), "".join(thoughts)


def _reasoning(turn: Mapping[str, Any]) -> str:
    for key in _REASONING:
        value = turn.get(key)
        if isinstance(value, str) and value:
            return value
        if value not in (None, "", [], {}, False):
            raise Unreadable("reasoning is not text", f'"{key}" is not text')
    return ""


def _split_thought(text: str, reasoning: str) -> tuple[str, str]:
    """Reasoning and the rest, where a ShareGPT call begins with `<think>`."""
    start, end = "<think>", "</think>"
    if reasoning or not text.lstrip().startswith(start) or end not in text:
        return reasoning, text
    thought, _, rest = text.lstrip().removeprefix(start).partition(end)
    return thought.strip("\n"), rest


def _tool_calls(turn: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if isinstance(calls, str) and calls.strip():
        calls = _json(calls, "tool call that can't be read")
    legacy = turn.get("function_call")
    found = [] if calls in (None, "", {}) else calls
    if not isinstance(found, list):
        raise Unreadable("tool call that can't be read", '"tool_calls" is not a list')
    if legacy not in (None, "", {}):
        found = [*found, _json(legacy, "") if isinstance(legacy, str) else legacy]
    return tuple(_tool_call(call) for call in found)


def _calls_of_text(text: str) -> tuple[ToolCall, ...]:
    """The calls that a ShareGPT turn holds as JSON."""
    found = _json(text, "tool call that can't be read")
    return tuple(_tool_call(call) for call in (found if isinstance(found, list) else [found]))


def _tool_call(call: object) -> ToolCall:
    problem = "tool call that can't be read"
    if not isinstance(call, Mapping):
        raise Unreadable(problem, "a tool call is not an object")
    if call.get("type") not in (None, "", "function"):
        raise Unreadable(problem, f"a tool call of type {str(call['type'])[:40]!r}")
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise Unreadable(problem, "a tool call without the function's name")
    if isinstance(arguments, str):
        arguments = _json(arguments, problem) if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise Unreadable(problem, f"the arguments of {name[:40]!r} are not an object")
    return ToolCall(name, dict(arguments), _optional_text(call, "id"))


def _weight(turn: Mapping[str, Any]) -> float:
    for key in _TRAINED:
        value = turn.get(key)
        if isinstance(value, bool) and not value:
            return 0
    value = turn.get("weight")
    if value is None or value in (0, 1):
        return 1 if value is None else int(value)
    raise Unreadable("weight is not 0 or 1", f'"weight" is {str(value)[:40]!r}, not 0 or 1')


def _optional_text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unreadable(f"{key} is not text", f'"{key}" is not text')
    return str(value)


def _json(text: str, reason: str) -> Any:
    """The value of a JSON string; raises Unreadable."""
    reason = reason or "tool call that can't be read"
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(reason, f"{reason}: {str(error)[:120]}") from None


def _type_name(value: object) -> str:
    names = {bool: "boolean", int: "number", float: "number", dict: "object"}
    return names.get(type(value), type(value).__name__)
