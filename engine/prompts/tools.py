"""The built-in tool descriptions (assets/tools.jsonl): schemas, example requests and the system
message that offers them to a model. The tools are never run.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.workspace import assets_dir


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user message with slots, and the arguments of the call that it needs."""

    text: str
    arguments: dict[str, Any] = {}


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool that a prompt may offer."""

    name: str
    domain: str
    description: str
    parameters: dict[str, Any]
    """JSON Schema of the arguments."""
    requests: tuple[Request, ...]


@functools.cache
def load_tools() -> dict[str, Tool]:
    """The tools by name, in the order of their file."""
    lines = (assets_dir() / "tools.jsonl").read_bytes().splitlines()
    tools = [msgspec.json.decode(line, type=Tool) for line in lines]
    return {tool.name: tool for tool in tools}


def signature(tool: Tool) -> str:
    """One line: `name(arg: type, optional?: type): description`."""
    required = tool.parameters.get("required", [])
    parts = [
        f"{name}{'' if name in required else '?'}: {_type(schema)}"
        for name, schema in tool.parameters["properties"].items()
    ]
    return f"{tool.name}({', '.join(parts)}): {tool.description}"


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return "|".join(schema["enum"])
    note = schema.get("description")
    return f"{schema['type']} ({note})" if note else str(schema["type"])


def offer(tools: Sequence[Tool], style: str = "signatures") -> str:
    """The system message that offers the tools, as `signatures` or JSON `schemas`."""
    if style == "schemas":
        described = [
            {"name": t.name, "description": t.description, "parameters": t.parameters}
            for t in tools
        ]
        lines = [msgspec.json.encode(one).decode() for one in described]
    else:
        lines = [f"- {signature(tool)}" for tool in tools]
    return (
        "You can use these tools:\n" + "\n".join(lines) + "\n"
        'Call one with a JSON object {"tool": NAME, "arguments": {...}}, one object a line for '
        "several calls, and write nothing else. Where no tool is needed, answer in words."
    )
