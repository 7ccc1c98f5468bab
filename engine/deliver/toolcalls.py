"""Owns the tool prompts that ship for measuring (assets/validation), how the tools are put before a
model, and what its answer is worth: JSON, a call that fits the schema, the call that is wanted.

The prompts are written by hand for this purpose and are never learnt from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec

from engine.workspace import assets_dir

_FENCE = re.compile(r"\A```[ \t]*\w*[ \t]*\n(.*)\n?```\s*\Z", re.S)


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool on offer."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON Schema (draft 2020-12) of its arguments."""


class ToolPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody wants, the tools on offer, and the call that serves it."""

    id: str
    offered: tuple[str, ...]
    query: str
    tool: str
    arguments: dict[str, Any] = {}
    """Those that follow from the query without a doubt; others may be given besides."""


class Verdict(msgspec.Struct, frozen=True):
    """What an answer is worth; each implies the one before."""

    is_json: bool
    """The whole answer is one JSON value, bare or in one fence."""
    is_call: bool
    """It calls a tool on offer with arguments that fit its schema."""
    is_right: bool
    """The tool and the arguments are those that the query asks for."""
    why: str = ""
    """What is wrong, in a few words; empty when nothing is."""


def load_tools() -> dict[str, Tool]:
    """The tools by name."""
    lines = (assets_dir() / "validation" / "tools.jsonl").read_bytes().splitlines()
    return {tool.name: tool for tool in (msgspec.json.decode(line, type=Tool) for line in lines)}


def load_prompts() -> list[ToolPrompt]:
    """The prompts, in the order of their file."""
    lines = (assets_dir() / "validation" / "tool_calls.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ToolPrompt) for line in lines]


def as_chat(prompt: ToolPrompt, tools: dict[str, Tool]) -> list[dict[str, str]]:
    """The conversation whose answer is to be a tool call."""
    lines = [f"- {signature(tools[name])}" for name in prompt.offered]
    system = (
        "You can use these tools:\n" + "\n".join(lines) + "\n"
        'Answer with one JSON object {"tool": NAME, "arguments": {...}} and nothing else.'
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt.query}]


def signature(tool: Tool) -> str:
    """`name(argument: type, other?: type): what it does`."""
    required = tool.parameters.get("required", [])
    parts = [
        f"{name}{'' if name in required else '?'}: {_type(schema)}"
        for name, schema in tool.parameters["properties"].items()
    ]
    return f"{tool.name}({', '.join(parts)}): {tool.description}"


def _type(schema: dict[str, Any]) -> str:
    return "|".join(schema["enum"]) if "enum" in schema else str(schema["type"])


def judge(answer: str, prompt: ToolPrompt, tools: dict[str, Tool]) -> Verdict:
    """What the answer is worth."""
    try:
        value = parse(answer)
    except ValueError:
        return Verdict(
            False, False, False, "no JSON" if answer.strip() else "nothing but white space"
        )
    if not isinstance(value, dict) or not isinstance(value.get("tool", value.get("name")), str):
        return Verdict(True, False, False, "JSON, but no tool call")
    name, arguments = value.get("tool", value.get("name")), value.get("arguments", {})
    if name not in prompt.offered:
        return Verdict(True, False, False, f"calls {str(name)[:40]!r}, which is not on offer")
    schema = tools[name].parameters
    errors = jsonschema.Draft202012Validator(schema).iter_errors(arguments)
    if (error := next(iter(errors), None)) is not None:
        return Verdict(True, False, False, f"{name}: {error.message}"[:120])
    if name != prompt.tool:
        return Verdict(True, True, False, f"calls {name} instead of {prompt.tool}")
    for key, wanted in prompt.arguments.items():
        if not same(arguments.get(key), wanted):
            return Verdict(True, True, False, f"{key} is {arguments.get(key)!r}, not {wanted!r}")
    return Verdict(True, True, True)


def parse(answer: str) -> Any:
    """The answer as one JSON value (bare, or in one fence); ValueError when it is none.

    Words around it do not count: a program would have to cut the JSON out.
    """
    text = answer.strip()
    fenced = _FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def same(value: Any, wanted: Any) -> bool:
    """Equality that forgives case and outer space in texts, and 3.0 for 3."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(wanted, int | float) and isinstance(value, int | float):
        return math.isclose(value, wanted, rel_tol=1e-6)
    if isinstance(wanted, str) and isinstance(value, str):
        return value.strip().casefold() == wanted.casefold()
    if isinstance(wanted, Sequence) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    return value == wanted
