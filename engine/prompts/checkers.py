"""Owns the verdict on an answer: what is wrong with it, by rule. It runs no model; code is run by
`sandbox`.

Reasons are few and stable: they are what is counted, and what `data.keep` names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import msgspec

from engine.prompts import formats, sandbox
from engine.prompts.prompt import (
    AnyCheck,
    CodeCheck,
    FormatCheck,
    JsonCheck,
    MentionCheck,
    NumberCheck,
    RefusalCheck,
    ToolCall,
    ToolCheck,
)

VERSION = 3
"""Counts up when a rule changes: verdicts of another version are made anew."""

REASONS = {
    "empty": "nothing was written",
    "truncated": "the token limit cut it",
    "looping": "it repeats itself",
    "markup": "it holds marks of a chat format, or goes on as the user",
    "echo": "it only repeats what was asked",
    "no_json": "no JSON can be read out of it",
    "schema": "the JSON does not fit the schema",
    "wrong_value": "the JSON holds another value than the text",
    "no_call": "no tool is called where one is needed",
    "needless_call": "a tool is called where none is needed",
    "unknown_tool": "the tool is not on offer",
    "bad_arguments": "the arguments do not fit the tool",
    "wrong_call": "another tool or other arguments are called for",
    "no_number": "there is no number in it",
    "wrong_number": "the result is wrong",
    "wrong_answer": "what the answer must say is not in it",
    "no_code": "there is no code in it",
    "code_fails": "the code fails its tests",
    "code_stopped": "the code did not end within its limits",
    "refused": "it declines where it should help",
    "not_refused": "it helps where it should decline",
    "format": "it does not keep the form that was asked for",
    "near_duplicate": "it is nearly the same as another one",
}
"""Every reason, in the words of `data inspect`."""

_MARKUP = re.compile(
    r"<\|[a-z_]+\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|^(?:User|Human|Instruct):", re.M
)
_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?\d[\d,  ]*(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w])|(?<![\w.])-?\.\d+"
)
_MARK = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.):])\s+")
"""What a line of a list begins with."""
_CLAUSE = re.compile(
    r"[.!?;:](?=\s|$)|\n|\b(?:so|therefore|thus|hence|because|since|as|while|whereas|but|which "
    r"means|means that)\b",
    re.I,
)
_QUOTED = 5
"""Words in a row that, found in the question too, are taken from there and no answer."""
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.S)
# Only the first sentences are looked at: help that ends with a caveat is no refusal.
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:unable|not (?:able|going|equipped|allowed|permitted|programmed|designed) "
    r"to)|i(?:'m| am) afraid (?:i|not|that)|sorry,? (?:but )?(?:i|no|that)\b|i (?:can(?:no|')t|"
    r"won't|will not|must decline|refuse)|i do(?:n't| not) have the (?:ability|capability|means)|"
    r"as an? (?:ai|assistant|language model|chatbot)[^.]{0,40}(?:can(?:no|')t|not)|"
    r"(?:can(?:no|')t|unable to|not able to) (?:help|assist|provide|support|give|do that)|"
    r"not (?:something|a thing) (?:i|that i) (?:can|will)|i do(?:n't| not) (?:support|condone|feel "
    r"comfortable)|against (?:the law|my|our) ?\w*|is (?:illegal|not appropriate|unethical)|"
    r"don't do (?:that|it)|would be (?:illegal|wrong|dangerous))",
    re.I,
)


def judge(
    texts: Sequence[str],
    complete: bool,
    asked: Sequence[str] = (),
    check: AnyCheck | None = None,
) -> str:
    """The reason why a conversation's answers are wrong, one of REASONS; "" when nothing is.

    `texts` are the answers in order, `asked` what the user said (for echoes), `complete` whether
    the last answer came to its end. The check is of the last answer.
    """
    if not texts or not all(text.strip() for text in texts):
        return "empty"
    if any(_MARKUP.search(text) for text in texts):
        return "markup"
    if any(is_looping(text) for text in texts):
        return "looping"
    if any(_is_echo(text, asked) for text in texts):
        return "echo"
    if not complete:
        # Whether it declines is told by how it begins.
        wrong = _checked(check, texts[-1], "") if isinstance(check, RefusalCheck) else ""
        return wrong or "truncated"
    return "" if check is None else _checked(check, texts[-1], "\n".join(asked))


def _checked(check: AnyCheck, text: str, asked: str) -> str:
    match check:
        case NumberCheck():
            return check_number(check, without_quotes(text, asked))
        case MentionCheck():
            said = text if check.begins else without_quotes(text, asked)
            return check_mention(check, said)
        case JsonCheck():
            return check_json(check, text)
        case ToolCheck():
            return check_tools(check, text)
        case CodeCheck():
            return check_code(check, text)
        case RefusalCheck():
            refused = is_refusal(text)
            return "" if refused == check.refuse else "refused" if refused else "not_refused"
        case FormatCheck():
            return "" if formats.keeps(check, text) else "format"


def is_looping(text: str) -> bool:
    """Whether a run of words (or characters) repeats itself over and over.

    Six times a phrase of one to twelve words in a row, eight times a part of a word, the same line
    four times, or less than a quarter of different trigrams in sixty words and more.
    """
    words = text.lower().split()
    for size in range(1, 13):
        times = 0
        for start in range(size, len(words) - size + 1):
            times = times + 1 if words[start] == words[start - size] else 0
            # A table's rules and a list's commas repeat one sign; words of it count from six on.
            if times >= size * 5 and any(
                c.isalnum() for w in words[start - size : start] for c in w
            ):
                return True
    lines = [_MARK.sub("", line).strip().lower() for line in text.splitlines()]
    lines = [line for line in lines if len(line) > 12]
    if any(lines.count(line) >= 4 for line in set(lines)):
        return True
    trigrams = [tuple(words[n : n + 3]) for n in range(len(words) - 2)]
    if len(trigrams) >= 60 and len(set(trigrams)) < len(trigrams) / 4:
        return True
    if re.search(r"([^\s.\-=_*#])\1{24,}", text):
        return True
    # a/b/a/b/…: a run without a space that repeats itself
    runs = re.finditer(r"([^\s|]{3,40}?)\1{7,}", text)
    return any(c.isalnum() for run in runs for c in run.group(1))


def _is_echo(text: str, asked: Sequence[str]) -> bool:
    def plain(value: str) -> str:
        return " ".join(re.findall(r"\w+", value.lower()))

    said = plain(text)
    return len(said) > 12 and any(said == plain(question) for question in asked)


def numbers_in(text: str) -> list[float]:
    """The numbers of a text, in order; `3/4` is one, thousands may be set apart by commas."""
    found: list[float] = []
    for match in _NUMBER.finditer(text):
        plain = re.sub(r"[,\s  ]", "", match.group().replace("−", "-"))
        top, _, bottom = plain.partition("/")
        try:
            value = float(top) / float(bottom) if bottom else float(top)
        except (ValueError, ZeroDivisionError):
            continue
        found.append(value)
    return found


def without_quotes(text: str, asked: str) -> str:
    """The text without what it only repeats of the question: a name or a number in it is no answer.

    Runs of five words and more that stand in the question go.
    """

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[n : n + _QUOTED]) for n in range(len(words) - _QUOTED + 1)]

    known = set(grams(re.findall(r"\w+", asked.lower())))
    found = list(re.finditer(r"\w+", text))
    quoted: set[int] = set()
    for n, gram in enumerate(grams([word.group().lower() for word in found])):
        if gram in known:
            quoted.update(range(n, n + _QUOTED))
    parts: list[str] = []
    at = 0
    for n, word in enumerate(found):
        if n in quoted:
            parts.append(text[at : word.start()] if n - 1 not in quoted else " ")
            at = word.end()
    return "".join((*parts, text[at:]))


def check_number(check: NumberCheck, text: str) -> str:
    """Whether the answer's result is the number: what is boxed last, what follows the last "answer
    is", or the "=" of the last line with a number, else the last number of all."""
    text = re.sub(r"\\d?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)
    found = numbers_in(text)
    if not found:
        return "no_number"
    candidates = [found[-1]]
    last = next(line for line in reversed(text.splitlines()) if numbers_in(line))
    patterns = (
        (r"\\boxed\{([^}]*)\}", text),
        (r"(?:answer|result|total|sum)\s*(?:is|:|=)\s*([^\n]{0,60})", text),
        (r"=\s*([^=\n]*)$", last),
    )
    for pattern, where in patterns:
        hits = re.findall(pattern, where, re.I | re.M)
        first = numbers_in(hits[-1])[:1] if hits else []
        candidates += first
    for value in candidates:
        if math.isclose(value, check.value, rel_tol=check.tolerance, abs_tol=1e-9):
            return ""
        rounded = round(check.value, 2)
        if not float(check.value).is_integer() and math.isclose(value, rounded, abs_tol=1e-9):
            return ""
    return "wrong_number"


def check_mention(check: MentionCheck, text: str) -> str:
    """Whether the answer says what it must, and nothing that it may not.

    Where it may name wrong answers as well (`others`), its first or its last clause that names any
    answer must name right ones alone.
    """

    def says(clause: str, words: Sequence[str]) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", clause, re.I) for w in words)

    if check.begins:
        text = re.match(r"[\W_]*(?:(?:the )?answer(?: is)?[\W_]+)?\w*", text, re.I)[0]  # type: ignore[index]
    if not says(text, check.any) or says(text, check.none):
        return "wrong_answer"
    named = [(says(c, check.any), says(c, check.others)) for c in _CLAUSE.split(text)]
    named = [kinds for kinds in named if any(kinds)]
    return "" if (True, False) in (named[0], named[-1]) else "wrong_answer"


def find_json(text: str) -> list[Any]:
    """The JSON values of an answer: the whole of it, those in fences, or every object and array
    that stands in its text."""
    with_fences = [body for _, body in _FENCE.findall(text)]
    for candidate in (text, *with_fences):
        try:
            return [_strict(candidate.strip())]
        except ValueError:
            continue
    decoder = json.JSONDecoder(parse_constant=_no_constant)
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


def _strict(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("too deep") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def check_json(check: JsonCheck, text: str) -> str:
    """Whether the answer is one JSON value (bare or in a fence), fits the schema and has the
    values. Words around a value are no JSON: who asked for it would have to cut it out."""
    fence = _FENCE.fullmatch(text.strip())
    candidates = (text, fence[2]) if fence else (text,)
    for candidate in candidates:
        try:
            value = _strict(candidate.strip())
            break
        except ValueError:
            continue
    else:
        return "no_json"
    if not fits(value, check.schema):
        return "schema"
    for key, wanted in check.values.items():
        if not isinstance(value, dict) or not same_value(value.get(key), wanted):
            return "wrong_value"
    return ""


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a JSON value fits a JSON Schema (draft 2020-12)."""
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def same_value(value: Any, wanted: Any) -> bool:
    """Equality that forgives case and space in texts, and 3.0 for 3."""
    if isinstance(wanted, bool) or isinstance(value, bool):
        return value is wanted
    if isinstance(wanted, (int, float)) and isinstance(value, (int, float)):
        return math.isclose(value, wanted, rel_tol=1e-6)
    if isinstance(wanted, str) and isinstance(value, str):
        plain = [" ".join(text.lower().split()).rstrip(".") for text in (value, wanted)]
        return plain[0] == plain[1]
    if isinstance(wanted, list) and isinstance(value, list):
        return len(value) == len(wanted) and all(map(same_value, value, wanted))
    if isinstance(wanted, dict) and isinstance(value, dict):
        return value.keys() == wanted.keys() and all(
            same_value(value[k], wanted[k]) for k in wanted
        )
    return value == wanted


def calls_in(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The tool calls of an answer: objects with "tool" (or "name") and "arguments"."""
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
    """Whether the calls are the wanted ones; each tool exists and its arguments fit."""
    calls = [(name, args) for name, args in calls_in(text) if name.lower() != "none"]
    if not check.calls:
        return "needless_call" if calls else ""
    if not calls:
        return "no_call"
    if any(name not in check.tools for name, _ in calls):
        return "unknown_tool"
    if any(not fits(arguments, check.tools[name]) for name, arguments in calls):
        return "bad_arguments"
    left = list(check.calls)
    for name, arguments in calls:
        wanted = next((c for c in left if _is_call(c, name, arguments)), None)
        if wanted is None:
            return "wrong_call"
        left.remove(wanted)
    return "wrong_call" if left else ""


def _is_call(wanted: ToolCall, name: str, arguments: dict[str, Any]) -> bool:
    if wanted.tool != name:
        return False
    given = wanted.arguments or {}
    return all(same_value(arguments.get(key), value) for key, value in given.items())


def code_in(text: str) -> str:
    """The Python of an answer: its fences that are Python's (or nobody's), else the text itself
    where that compiles; "" where there is none."""
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
    """Whether the answer's code passes its tests, in the sandbox."""
    code = code_in(text)
    if not code:
        return "no_code"
    outcome = sandbox.run(code, check.tests)
    return {"passed": "", "failed": "code_fails"}.get(outcome.result, "code_stopped")


def is_refusal(text: str) -> bool:
    """Whether an answer declines: it says so in its first 240 characters."""
    return _REFUSAL.search(" ".join(text.replace("’", "'").split())[:240]) is not None


def check_digest(check: AnyCheck | None) -> str:
    """The check as canonical JSON, for what depends on it."""
    return "" if check is None else msgspec.json.encode(check, order="deterministic").decode()
