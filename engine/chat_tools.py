"""Tool calls, tool results and reasoning as text, in the form of Qwen's chat templates.

It is the form in which a student learns them, and a fallback for chat templates that have no form
of their own: as Python for rendering, as Jinja for a model's template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from engine.text.examples import Message, ToolCall

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
THINK_START, THINK_END = "<think>\n", "\n</think>\n\n"
CALL_START, CALL_END = "<tool_call>\n", "\n</tool_call>"
RESULT_START, RESULT_END = "<tool_response>\n", "\n</tool_response>"


@dataclass(frozen=True)
class AnswerPart:
    """A part of an answer's text.

    `text` is what the author wrote, `think` and `call` are the marks around it.
    """

    kind: Literal["text", "think", "call"]
    text: str


def to_json(value: Any) -> str:
    """JSON as the templates' filter `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)


def answer_parts(message: Message) -> list[AnswerPart]:
    """The text of an assistant's turn: reasoning, content and calls, as a student learns them."""
    parts: list[AnswerPart] = []
    if message.reasoning_content:
        parts.append(AnswerPart("think", THINK_START))
        parts.append(AnswerPart("text", message.reasoning_content))
        parts.append(AnswerPart("think", THINK_END))
    if message.content:
        parts.append(AnswerPart("text", message.content))
    for number, call in enumerate(message.tool_calls):
        newline = "\n" if number or message.content else ""
        parts.append(AnswerPart("call", f'{newline}{CALL_START}{{"name": "'))
        parts.append(AnswerPart("text", to_json(call.name)[1:-1]))
        parts.append(AnswerPart("call", '", "arguments": '))
        parts.append(AnswerPart("text", to_json(call.arguments)))
        parts.append(AnswerPart("call", "}" + CALL_END))
    return parts


def answer_text(message: Message) -> str:
    """The bytes of an assistant's turn that are learnt."""
    return "".join(part.text for part in answer_parts(message))


def call_text(call: ToolCall) -> str:
    """One call as a student writes it."""
    return answer_text(Message("assistant", "", tool_calls=(call,)))


def tools_text(tools: Sequence[dict[str, Any]]) -> str:
    """The list of tools in the system turn."""
    return TOOLS_BEFORE + "".join("\n" + to_json(tool) for tool in tools) + TOOLS_AFTER


def uses_tools(messages: Sequence[Message] | None, tools: Sequence[dict[str, Any]] | None) -> bool:
    """Whether the conversation has tools, calls or results."""
    return bool(tools) or any(m.role == "tool" or m.tool_calls for m in messages or ())


def tools_as_text(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None
) -> list[Message]:
    """The conversation without tools: listed in the system turn, calls in the answers' text, and
    results in user turns."""
    turns: list[Message] = []
    rest = list(messages)
    if tools:
        system = tools_text(tools)
        if rest and rest[0].role == "system":
            system = f"{rest.pop(0).content}\n\n{system}"
        turns.append(Message("system", system))
    results = 0
    for message in rest:
        if message.role == "tool":
            text = RESULT_START + message.content + RESULT_END
            results += 1
            if results > 1:
                text = f"{turns.pop().content}\n{text}"
            turns.append(Message("user", text))
            continue
        results = 0
        if message.tool_calls:
            bare = msgspec.structs.replace(message, reasoning_content=None)
            message = msgspec.structs.replace(message, content=answer_text(bare), tool_calls=())
        turns.append(message)
    return turns


def reasoning_as_text(messages: Sequence[Message]) -> list[Message]:
    """The conversation with the reasoning in the text of the answers."""
    return [
        msgspec.structs.replace(
            m,
            content=THINK_START + m.reasoning_content + THINK_END + m.content,
            reasoning_content=None,
        )
        if m.reasoning_content
        else m
        for m in messages
    ]


def _quoted(text: str) -> str:
    """A string literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


# The same as `tools_as_text` and `reasoning_as_text`. A plain conversation is left as it is.
# Jinja's sandbox has no `append`. The last tag keeps what follows from being trimmed.
_PREAMBLE = (
    "{%- set ns = namespace(plain=not tools, turns=[], results=[], text='') -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'tool' or m.tool_calls or m.reasoning_content -%}"
    "{%- set ns.plain = false -%}{%- endif -%}{%- endfor -%}"
    "{%- if not ns.plain -%}"
    "{%- if tools -%}"
    f"{{%- set ns.text = {_quoted(TOOLS_BEFORE)} -%}}"
    "{%- for tool in tools -%}{%- set ns.text = ns.text + '\\n' + (tool | tojson) -%}{%- endfor -%}"
    f"{{%- set ns.text = ns.text + {_quoted(TOOLS_AFTER)} -%}}"
    "{%- if messages[0].role == 'system' -%}"
    "{%- set ns.text = messages[0].content + '\\n\\n' + ns.text -%}{%- endif -%}"
    "{%- set ns.turns = [{'role': 'system', 'content': ns.text}] -%}"
    "{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}"
    f"{{%- set ns.results = ns.results + [{_quoted(RESULT_START)} + m.content"
    f" + {_quoted(RESULT_END)}] -%}}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}"
    "{%- set ns.turns = ns.turns + [{'role': 'user', 'content': ns.results | join('\\n')}] -%}"
    "{%- set ns.results = [] -%}{%- endif -%}"
    "{%- elif m.role == 'assistant' -%}"
    "{%- set ns.text = m.content or '' -%}"
    "{%- for call in m.tool_calls or [] -%}"
    "{%- if call.function -%}{%- set call = call.function -%}{%- endif -%}"
    "{%- if m.content or not loop.first -%}{%- set ns.text = ns.text + '\\n' -%}{%- endif -%}"
    f"{{%- set ns.text = ns.text + {_quoted(CALL_START)} + '{{\"name\": ' + (call.name | tojson)"
    " + ', \"arguments\": ' + (call.arguments if call.arguments is string"
    f" else (call.arguments | tojson)) + '}}' + {_quoted(CALL_END)} -%}}"
    "{%- endfor -%}"
    "{%- if m.reasoning_content -%}"
    f"{{%- set ns.text = {_quoted(THINK_START)} + m.reasoning_content + {_quoted(THINK_END)}"
    " + ns.text -%}{%- endif -%}"
    "{%- set ns.turns = ns.turns + [{'role': 'assistant', 'content': ns.text}] -%}"
    "{%- elif not (tools and loop.first and m.role == 'system') -%}"
    "{%- set ns.turns = ns.turns + [m] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = ns.turns -%}{%- set tools = none -%}"
    "{%- endif -%}{{- '' }}"
)


def has_tools(template: str) -> bool:
    """Whether a chat template has a form for tool calls."""
    return "tool_calls" in template


def with_tools(template: str) -> str:
    """The chat template with tools, calls, results and reasoning in the form of this module.

    Other conversations are rendered as before.
    """
    return template if template.startswith(_PREAMBLE) else _PREAMBLE + template
