"""Owns the tool prompts that ship for measuring (assets/validation), and what an answer to one is
worth: JSON, a call that fits the schema, the call that is wanted.

The rules are `engine.prompts.checkers`', and the tools are put before the model as in the text
that it
learns from; the prompts are written by hand for this purpose and are never learnt from.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.prompts.checkers import REASONS
from engine.prompts.prompt import JsonCheck, ToolCall, ToolCheck
from engine.prompts.structured_checks import check_json, check_tools
from engine.prompts.tools import Tool, offer
from engine.workspace import assets_dir


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
    described = [msgspec.json.decode(line) for line in lines]
    return {one["name"]: Tool(domain="validation", requests=(), **one) for one in described}


def load_prompts() -> list[ToolPrompt]:
    """The prompts, in the order of their file."""
    lines = (assets_dir() / "validation" / "tool_calls.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ToolPrompt) for line in lines]


def as_chat(prompt: ToolPrompt, tools: dict[str, Tool]) -> list[dict[str, str]]:
    """The conversation whose answer is to be a tool call."""
    system = offer([tools[name] for name in prompt.offered])
    return [{"role": "system", "content": system}, {"role": "user", "content": prompt.query}]


def judge(answer: str, prompt: ToolPrompt, tools: dict[str, Tool]) -> Verdict:
    """What the answer is worth."""
    if check_json(JsonCheck(), answer):
        why = REASONS["no_json"] if answer.strip() else "nothing but white space"
        return Verdict(False, False, False, why)
    check = ToolCheck(
        tools={name: tools[name].parameters for name in prompt.offered},
        calls=(ToolCall(tool=prompt.tool, arguments=prompt.arguments),),
    )
    reason = check_tools(check, answer)
    is_call = reason in ("", "wrong_call")
    return Verdict(True, is_call, not reason, REASONS[reason] if reason else "")
