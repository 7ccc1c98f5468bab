"""Check answers that must be JSON, tool calls or Python code."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import jsonschema

from engine.prompts import sandbox
from engine.prompts.prompt import CodeCheck, JsonCheck, ToolCall, ToolCheck

_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.S)


def find_json(text: str) -> list[Any]:
    """The JSON values of an answer: all of it, the content of a code fence, or every object and
    array in its text."""
    with_fences = [body for _, body in _FENCE.findall(text)]
    for candidate in (text, *with_fences):
        try:
            return [_parse(candidate.strip())]
        except ValueError:
            continue
    decoder = json.JSONDecoder(parse_constant=_reject_constant)
    values: list[Any] = []
    at = 0
    while (match := re.search(r"[{\[]", text[at:])) is not None:
        start = at + match.start()
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            continue
        values.append(value)
        at = end
    return values


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def check_json(check: JsonCheck, text: str) -> str:
    """Check that the answer is one JSON value (plain or in a code fence) that fits the schema and
    has the required values. Text around the JSON counts as an error.

    Returns "no_json", "schema", "wrong_value" or "".
    """
    fence = _FENCE.fullmatch(text.strip())
    candidates = (text, fence[2]) if fence else (text,)
    for candidate in candidates:
        try:
            value = _parse(candidate.strip())
            break
        except ValueError:
            continue
    else:
        return "no_json"
    if not fits(value, check.schema):
        return "schema"
    for key, expected in check.values.items():
        if not isinstance(value, dict) or not same_value(value.get(key), expected):
            return "wrong_value"
    return ""


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a JSON value fits a JSON Schema (draft 2020-12)."""
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def same_value(value: Any, expected: Any) -> bool:
    """Equality that ignores case, white space and a final full stop of strings; 3.0 equals 3."""
    if isinstance(expected, bool) or isinstance(value, bool):
        return value is expected
    if isinstance(expected, (int, float)) and isinstance(value, (int, float)):
        return math.isclose(value, expected, rel_tol=1e-6)
    if isinstance(expected, str) and isinstance(value, str):
        plain = [" ".join(text.lower().split()).rstrip(".") for text in (value, expected)]
        return plain[0] == plain[1]
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(
            same_value(value[k], expected[k]) for k in expected
        )
    return value == expected


def calls_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The tool calls of an answer as (tool, arguments): JSON objects with "tool" or "name"."""
    found: list[tuple[str, dict[str, Any]]] = []
    values = find_json(text)
    for value in values:
        for call in value if isinstance(value, list) else [value]:
            if not isinstance(call, dict):
                continue
            name = call.get("tool", call.get("name"))
            arguments = call.get("arguments", {})
            if isinstance(name, str) and isinstance(arguments, dict):
                found.append((name, arguments))
    return found


def check_tools(check: ToolCheck, text: str) -> str:
    """Check that the answer makes exactly the expected calls, in any order, with valid arguments.

    Returns "needless_call", "no_call", "unknown_tool", "bad_arguments", "wrong_call" or "".
    """
    calls = [(name, args) for name, args in calls_in(text) if name.lower() != "none"]
    if not check.calls:
        return "needless_call" if calls else ""
    if not calls:
        return "no_call"
    if any(name not in check.tools for name, _ in calls):
        return "unknown_tool"
    if any(not fits(arguments, check.tools[name]) for name, arguments in calls):
        return "bad_arguments"
    remaining = list(check.calls)
    for name, arguments in calls:
        expected = next((c for c in remaining if _is_call(c, name, arguments)), None)
        if expected is None:
            return "wrong_call"
        remaining.remove(expected)
    return "wrong_call" if remaining else ""


def _is_call(expected: ToolCall, name: str, arguments: dict[str, Any]) -> bool:
    if expected.tool != name:
        return False
    required = expected.arguments or {}
    return all(same_value(arguments.get(key), value) for key, value in required.items())


def code_in(text: str) -> str:
    """The Python code of an answer: its Python (or unlabelled) code fences, else the whole text
    if it compiles; "" if there is none."""
    fences = [
        body
        for language, body in _FENCE.findall(text)
        if language in ("", "py", "python", "python3")
    ]
    if fences:
        return "\n\n".join(fences)
    try:
        compile(text, "answer", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return text if re.search(r"^\s*(?:def|class|import|from|\w+\s*=)", text, re.M) else ""


def check_code(check: CodeCheck, text: str) -> str:
    """Run the answer's code and its tests in the sandbox.

    Returns "no_code", "code_fails", "code_stopped", "code_not_run" or "".
    """
    code = code_in(text)
    if not code:
        return "no_code"
    outcome = sandbox.run(code, check.tests)
    reasons = {"passed": "", "failed": "code_fails", "not_run": "code_not_run"}
    return reasons.get(outcome.result, "code_stopped")
