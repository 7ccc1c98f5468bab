"""Measure how often the model answers the tool prompts of assets/validation with JSON, with a valid
call, and with the correct call.

The prompts were written by hand for validation and are never trained on; the tools are offered in
the same form as in the training text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.events import CheckDone
from engine.prompts.checkers import REASONS, check_json, check_tools
from engine.prompts.prompt import JsonCheck, ToolCall, ToolCheck
from engine.prompts.tools import Tool, offer
from engine.text.examples import Message
from engine.validate.check import Check, one_per_line, quality_row, skipped_row
from engine.validate.context import CheckContext
from engine.validate.quality.questions import quote
from engine.validate.report import Generation
from engine.workspace import assets_dir

MAX_NEW_TOKENS = 64


class ToolPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A query, the tools offered, and the call that answers it."""

    id: str
    offered: tuple[str, ...]
    query: str
    tool: str
    arguments: dict[str, Any] = {}
    """Arguments that follow from the query; others may be given as well."""


@dataclass(frozen=True)
class Score:
    """Quality of an answer; each property implies the one before.

    Attributes:
        is_json: the whole answer is one JSON value, plain or in one code fence.
        is_valid: it calls an offered tool with arguments that fit its JSON Schema.
        is_correct: tool and arguments are those that the query requires.
        reason: what is wrong; empty when nothing is.
    """

    is_json: bool
    is_valid: bool
    is_correct: bool
    reason: str = ""


@dataclass(frozen=True)
class _Metric:
    name: str
    title: str
    bound: float
    """Smallest share of prompts: this program's own judgement of a useful assistant."""
    meaning: str


_METRICS = (
    _Metric(
        name="valid_json",
        title="valid JSON",
        bound=0.8,
        meaning="How often the whole answer is one JSON value, as the prompt requires.",
    ),
    _Metric(
        name="valid_tool_calls",
        title="valid tool calls",
        bound=0.7,
        meaning="How often the answer calls an offered tool with arguments that fit the tool's "
        "JSON Schema.",
    ),
    _Metric(
        name="right_tool_calls",
        title="correct tool calls",
        bound=0.5,
        meaning="How often the call is the one that the query asks for.",
    ),
)


def load_tools() -> dict[str, Tool]:
    """The tools by name."""
    lines = (assets_dir() / "validation" / "tools.jsonl").read_bytes().splitlines()
    described = [msgspec.json.decode(line) for line in lines]
    return {one["name"]: Tool(domain="validation", requests=(), **one) for one in described}


def load_prompts() -> list[ToolPrompt]:
    """The prompts, in the order of their file."""
    lines = (assets_dir() / "validation" / "tool_calls.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=ToolPrompt) for line in lines]


def conversation(prompt: ToolPrompt, tools: dict[str, Tool]) -> list[Message]:
    """The conversation whose answer should be a tool call."""
    system = offer([tools[name] for name in prompt.offered])
    return [Message("system", system), Message("user", prompt.query)]


def score_answer(answer: str, prompt: ToolPrompt, tools: dict[str, Tool]) -> Score:
    """The quality of an answer."""
    if check_json(JsonCheck(), answer):
        reason = REASONS["no_json"] if answer.strip() else "only white space"
        return Score(is_json=False, is_valid=False, is_correct=False, reason=reason)
    check = ToolCheck(
        tools={name: tools[name].parameters for name in prompt.offered},
        calls=(ToolCall(tool=prompt.tool, arguments=prompt.arguments),),
    )
    fault = check_tools(check, answer)
    return Score(
        is_json=True,
        is_valid=fault in ("", "wrong_call"),
        is_correct=not fault,
        reason=REASONS[fault] if fault else "",
    )


def check_tool_calls(context: CheckContext) -> Iterator[CheckDone]:
    """A row for each metric; stores all answers."""
    tools, generator = load_tools(), context.generator
    all_prompts = load_prompts()
    prompts = [p for p in all_prompts if generator.fits(conversation(p, tools), MAX_NEW_TOKENS)]
    if not prompts:
        reason = f"None of the {len(all_prompts)} tool prompts fits into the model's context."
        for metric in _METRICS:
            yield skipped_row("quality", metric.name, metric.title, reason)
        return
    answers = generator.answer(
        [conversation(p, tools) for p in prompts], MAX_NEW_TOKENS, "calling tools"
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        context.generations.append(
            Generation(
                check="valid_tool_calls",
                prompt=prompt.query,
                text=answer.text,
                tokens=len(answer.ids),
                ended=answer.complete,
            )
        )
    scores = [score_answer(a.text, p, tools) for a, p in zip(answers, prompts, strict=True)]
    counts = {
        "valid_json": sum(score.is_json for score in scores),
        "valid_tool_calls": sum(score.is_valid for score in scores),
        "right_tool_calls": sum(score.is_correct for score in scores),
    }
    reasons = Counter(score.reason for score in scores if score.reason)
    details = {
        "valid_json": quote(prompts[0].query, answers[0]),
        "valid_tool_calls": one_per_line(f"{n} × {why}" for why, n in reasons.most_common()),
    }
    left_out = len(all_prompts) - len(prompts)
    suffix = f" ({left_out} do not fit into the context)" if left_out else ""
    for metric in _METRICS:
        share = counts[metric.name] / len(prompts)
        yield quality_row(
            metric.name,
            metric.title,
            passed=share >= metric.bound,
            value=f"{share:.0%} of {len(prompts)} prompts{suffix}",
            meaning=metric.meaning,
            bound=f"at least {metric.bound:.0%}",
            detail=details.get(metric.name, ""),
            number=share,
        )


CHECK = Check(
    group="quality", name="valid_tool_calls", title="valid tool calls", run=check_tool_calls
)
