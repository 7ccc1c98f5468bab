"""Check the number or the words that an answer must contain."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from engine.prompts.prompt import MentionCheck, NumberCheck

_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?\d[\d,  ]*(?:\.\d+)?(?:\s*/\s*\d+)?(?![\w])|(?<![\w.])-?\.\d+"
)
_CLAUSE = re.compile(
    r"[.!?;:](?=\s|$)|\n|\b(?:so|therefore|thus|hence|because|since|as|while|whereas|but|which "
    r"means|means that)\b",
    re.I,
)
_QUOTED = 5
"""Length of a run of words that counts as a quote of the question."""


def numbers_in(text: str) -> list[float]:
    """The numbers in a text, in order; `3/4` is one number, thousands may have separators."""
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


def without_quotes(text: str, question: str) -> str:
    """The text without quotes of the question, which are no answer.

    Removes every run of five or more words that also occurs in the question.
    """

    def grams(words: list[str]) -> list[tuple[str, ...]]:
        return [tuple(words[n : n + _QUOTED]) for n in range(len(words) - _QUOTED + 1)]

    question_grams = set(grams(re.findall(r"\w+", question.lower())))
    found = list(re.finditer(r"\w+", text))
    quoted: set[int] = set()
    for n, gram in enumerate(grams([word.group().lower() for word in found])):
        if gram in question_grams:
            quoted.update(range(n, n + _QUOTED))
    parts: list[str] = []
    at = 0
    for n, word in enumerate(found):
        if n in quoted:
            parts.append(text[at : word.start()] if n - 1 not in quoted else " ")
            at = word.end()
    return "".join((*parts, text[at:]))


def check_number(check: NumberCheck, text: str) -> str:
    """Check the result: the last boxed number, the one after the last "answer is", the one after
    the "=" of the last line with a number, or the last number of the text; any of them may match.

    Returns "no_number", "wrong_number" or "".
    """
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
    """Check that the answer contains a right name and no forbidden one.

    Where it may also name wrong answers (`others`), the first or the last clause that names any
    answer must name only right ones. Returns "wrong_answer" or "".
    """

    def mentions(clause: str, words: Sequence[str]) -> bool:
        return any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", clause, re.I) for w in words)

    if check.begins:
        text = re.match(r"[\W_]*(?:(?:the )?answer(?: is)?[\W_]+)?\w*", text, re.I)[0]  # type: ignore[index]
    if not mentions(text, check.any) or mentions(text, check.none):
        return "wrong_answer"
    named = [(mentions(c, check.any), mentions(c, check.others)) for c in _CLAUSE.split(text)]
    named = [kinds for kinds in named if any(kinds)]
    return "" if (True, False) in (named[0], named[-1]) else "wrong_answer"
