"""Judge answers by rules, without a model: whether an answer is wrong, and for which reason.

The reasons (`REASONS`) are stored in answer files, counted in reports and used by `data.keep`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from engine.prompts import formats
from engine.prompts.prompt import (
    AnyCheck,
    CodeCheck,
    FormatCheck,
    JsonCheck,
    MentionCheck,
    NumberCheck,
    RefusalCheck,
    ToolCheck,
)
from engine.prompts.structured_checks import check_code, check_json, check_tools
from engine.prompts.text_checks import check_mention, check_number, without_quotes

VERSION = 4
"""Increases when a rule changes: answers with verdicts of another version are judged again."""

REASONS = {
    "empty": "the answer is empty",
    "truncated": "cut off by the token limit",
    "looping": "repeats itself",
    "markup": "contains chat markup, or continues with a user turn",
    "echo": "only repeats the question",
    "no_json": "is not valid JSON",
    "schema": "the JSON does not match the schema",
    "wrong_value": "the JSON has a wrong value",
    "no_call": "a needed tool call is missing",
    "needless_call": "calls a tool where none is needed",
    "unknown_tool": "calls a tool that does not exist",
    "bad_arguments": "the arguments do not match the tool's schema",
    "wrong_call": "calls the wrong tool, or with wrong arguments",
    "no_number": "contains no number",
    "wrong_number": "the result is wrong",
    "wrong_answer": "the answer is wrong",
    "no_code": "contains no code",
    "code_fails": "the code fails its tests",
    "code_stopped": "the code exceeded its limits",
    "code_not_run": "needs its code run, which this system can't isolate (see doctor)",
    "refused": "refuses where it should help",
    "not_refused": "helps where it should refuse",
    "format": "does not follow the requested format",
    "near_duplicate": "nearly the same as another answer",
}
"""Every reason with the text that `data inspect` prints."""

_MARKUP = re.compile(
    r"<\|[a-z_]+\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|^(?:User|Human|Instruct):", re.M
)
_MARK = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.):])\s+")
"""The bullet or number of a list item."""
# Searched in the first sentences only: an answer that ends with a caveat is not a refusal.
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
    questions: Sequence[str] = (),
    check: AnyCheck | None = None,
) -> str:
    """The reason why a conversation's answers are wrong, a key of REASONS; "" if they are right.

    `texts` are the answers in order, `questions` the user's messages (to find echoes), `complete`
    whether the last answer was finished. `check` applies to the last answer.
    """
    if not texts or not all(text.strip() for text in texts):
        return "empty"
    if any(_MARKUP.search(text) for text in texts):
        return "markup"
    if any(is_looping(text) for text in texts):
        return "looping"
    if any(_is_echo(text, questions) for text in texts):
        return "echo"
    if not complete:
        # The beginning is enough to tell whether it refuses.
        reason = _run_check(check, texts[-1], "") if isinstance(check, RefusalCheck) else ""
        return reason or "truncated"
    return "" if check is None else _run_check(check, texts[-1], "\n".join(questions))


def _run_check(check: AnyCheck, text: str, question: str) -> str:
    match check:
        case NumberCheck():
            return check_number(check, without_quotes(text, question))
        case MentionCheck():
            return check_mention(check, text if check.begins else without_quotes(text, question))
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
            return "" if formats.follows(check, text) else "format"


def is_looping(text: str) -> bool:
    """Whether the text repeats itself.

    It does with a phrase of one to twelve words six times in a row, a part of a word eight times
    in a row, the same line four times, or fewer than a quarter distinct trigrams among 60 or more.
    """
    words = text.lower().split()
    for size in range(1, 13):
        times = 0
        for start in range(size, len(words) - size + 1):
            times = times + 1 if words[start] == words[start - size] else 0
            # Rulers of tables and commas of lists repeat too, but only punctuation.
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
    # a/b/a/b/…: a repeated run without spaces
    runs = re.finditer(r"([^\s|]{3,40}?)\1{7,}", text)
    return any(c.isalnum() for run in runs for c in run.group(1))


def _is_echo(text: str, questions: Sequence[str]) -> bool:
    def normalised(value: str) -> str:
        return " ".join(re.findall(r"\w+", value.lower()))

    answer = normalised(text)
    return len(answer) > 12 and any(answer == normalised(question) for question in questions)


def is_refusal(text: str) -> bool:
    """Whether an answer refuses: a phrase of refusal occurs in its first 240 characters."""
    return _REFUSAL.search(" ".join(text.replace("’", "'").split())[:240]) is not None


def check_digest(check: AnyCheck | None) -> str:
    """The check as canonical JSON, for digests."""
    return "" if check is None else msgspec.json.encode(check, order="deterministic").decode()
