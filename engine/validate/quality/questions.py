"""Answers to fixed questions: two of them in full, with rules for their form, and repetition over
all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from engine.events import CheckDone
from engine.text.examples import Message
from engine.validate.check import Check, quality_row, skipped_row
from engine.validate.context import CheckContext
from engine.validate.generation import GeneratedAnswer
from engine.validate.report import Generation
from engine.workspace import assets_dir

MAX_NEW_TOKENS = 96
MAX_REPETITION = 0.2
"""Share of 4-grams that occurred before in the same answer. Human text has next to none; most of a
looping model's are repeated. The bound is this program's own judgement of a useful assistant."""
_NGRAM = 4
_MIN_WORDS = 5

ROUTING = "routing"
CAPABILITIES = "capabilities"
_TITLES = {ROUTING: "tool routing", CAPABILITIES: "capabilities question"}
"""The questions whose answers have a separate row, by id."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of assets/validation/questions.jsonl."""

    id: str
    query: str


def load_questions() -> list[Question]:
    """The questions in the order of their file."""
    lines = (assets_dir() / "validation" / "questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Question) for line in lines]


def repeated_ngrams(ids: Sequence[int], n: int = _NGRAM) -> tuple[int, int]:
    """(n-grams that occurred before in the same text, all n-grams).

    Their ratio over a set of texts is seq-rep-n of arXiv 1908.04319 (1 - unique / all), with the
    texts weighted by their length.
    """
    ngrams = Counter(tuple(ids[start : start + n]) for start in range(len(ids) - n + 1))
    total = sum(ngrams.values())
    return total - len(ngrams), total


def check_questions(context: CheckContext) -> Iterator[CheckDone]:
    """A row for each question of _TITLES, and one for repetition; stores all answers."""
    generator = context.generator
    questions = [
        question
        for question in load_questions()
        if generator.fits([Message("user", question.query)], MAX_NEW_TOKENS)
    ]
    prompts = [[Message("user", question.query)] for question in questions]
    answers = generator.answer(prompts, MAX_NEW_TOKENS, "answering questions")
    for question, answer in zip(questions, answers, strict=True):
        context.generations.append(
            Generation(
                check=question.id if question.id in _TITLES else "repetition",
                prompt=question.query,
                text=answer.text,
                tokens=len(answer.ids),
                ended=answer.complete,
            )
        )
    by_id = {q.id: (q, answer) for q, answer in zip(questions, answers, strict=True)}
    for name, title in _TITLES.items():
        if name in by_id:
            question, answer = by_id[name]
            yield _answer_row(name, title, question, answer)
        else:
            reason = "Prompt and answer do not fit into the model's context."
            yield skipped_row("quality", name, title, reason)
    yield _repetition_row(answers)


def _answer_row(name: str, title: str, question: Question, answer: GeneratedAnswer) -> CheckDone:
    faults = _faults(name, answer)
    size = f"{len(answer.ids)} tokens"
    return quality_row(
        name,
        title,
        passed=not faults,
        value=f"{size}: {', '.join(faults)}" if faults else f"{size}, complete",
        meaning="The rules check only the form of the answer; read it to judge its content.",
        bound="complete, no loops, "
        + ("mentions search" if name == ROUTING else f"at least {_MIN_WORDS} words"),
        detail=quote(question.query, answer),
    )


def _faults(name: str, answer: GeneratedAnswer) -> list[str]:
    """What is wrong with the form of an answer."""
    repeated, total = repeated_ngrams(answer.ids)
    words = answer.text.split()
    faults = []
    if not words:
        faults.append("only white space" if answer.ids else "empty")
    if not answer.complete:
        faults.append(f"cut off at {MAX_NEW_TOKENS} tokens")
    if total > 0 and repeated / total > MAX_REPETITION:
        faults.append("repeats itself")
    if name == ROUTING and "search" not in answer.text.casefold():
        faults.append("does not mention search")
    if name == CAPABILITIES and words and len(words) < _MIN_WORDS:
        faults.append(f"fewer than {_MIN_WORDS} words")
    return faults


def quote(prompt: str, answer: GeneratedAnswer) -> str:
    """Prompt and answer in full; an answer of only white space is shown escaped."""
    return f"> {prompt}\n{answer.text.strip() or repr(answer.text)}"


def _repetition_row(answers: Sequence[GeneratedAnswer]) -> CheckDone:
    counts = [repeated_ngrams(answer.ids) for answer in answers]
    repeated, total = sum(count for count, _ in counts), sum(count for _, count in counts)
    if not total:
        reason = f"No answer has {_NGRAM} tokens, so nothing can be repeated."
        return skipped_row("quality", "repetition", "repetition", reason)
    share = repeated / total
    return quality_row(
        "repetition",
        "repetition",
        passed=share <= MAX_REPETITION,
        value=f"{share:.1%} of {_NGRAM}-grams",
        meaning=f"Share of {_NGRAM}-grams in {len(answers)} greedy answers that occurred before in "
        "the same answer.",
        bound=f"at most {MAX_REPETITION:.0%}",
        number=share,
    )


CHECK = Check(group="quality", name=ROUTING, title=_TITLES[ROUTING], run=check_questions)
