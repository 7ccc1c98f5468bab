"""Owns what a model's answers are worth: the two promised prompts with their full text, JSON and
tool calls over the prompts that ship, repetition, and how quickly it writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from engine.events import CheckDone
from engine.validate.checks.check import listed, row, skipped
from engine.validate.quality.tool_calls import as_chat, judge, load_prompts, load_tools
from engine.validate.quality.writer import Writer, Written
from engine.validate.report import Generation
from engine.workspace import assets_dir

# The bounds are this program's own judgement of an assistant that is of use.
MIN_JSON = 0.8
MIN_CALLS = 0.7
MIN_RIGHT = 0.5
MAX_REPETITION = 0.2
"""Of 4-grams that were there before. Human text has next to none; a model that loops has most."""
_GRAM = 4

ANSWER_TOKENS = 96
CALL_TOKENS = 64

ROUTING = "routing"
CAPABILITIES = "capabilities"


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question that ships."""

    id: str
    query: str


def load_questions() -> list[Question]:
    """The questions; the two that are promised come first."""
    lines = (assets_dir() / "validation" / "questions.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Question) for line in lines]


def repetition(ids: Sequence[int], gram: int = _GRAM) -> tuple[int, int]:
    """n-grams of a text that occurred in it before, and n-grams in all.

    Their ratio over a set of texts is seq-rep-n of arXiv 1908.04319 (1 - unique / all), with the
    texts weighed by their length.
    """
    grams = Counter(tuple(ids[n : n + gram]) for n in range(len(ids) - gram + 1))
    total = sum(grams.values())
    return total - len(grams), total


def check_answers(writer: Writer, generations: list[Generation]) -> list[CheckDone]:
    """The rows of the two promised prompts, and of the repetition over all questions.

    generations: every answer is added to it.
    """
    questions = [
        q
        for q in load_questions()
        if writer.fits([{"role": "user", "content": q.query}], ANSWER_TOKENS)
    ]
    answers = writer.write(
        [[{"role": "user", "content": q.query}] for q in questions],
        ANSWER_TOKENS,
        "answers questions",
    )
    written = {q.id: (q, answer) for q, answer in zip(questions, answers, strict=True)}
    for question, answer in written.values():
        name = question.id if question.id in (ROUTING, CAPABILITIES) else "repetition"
        generations.append(
            Generation(
                check=name,
                prompt=question.query,
                text=answer.text,
                tokens=len(answer.ids),
                ended=answer.ended,
            )
        )
    rows = [_promised(name, written) for name in (ROUTING, CAPABILITIES)]
    return [*rows, _repetition(answers)]


def _promised(name: str, written: dict[str, tuple[Question, Written]]) -> CheckDone:
    title = {ROUTING: "tool routing", CAPABILITIES: "capabilities"}[name]
    if name not in written:
        return skipped("quality", name, title, "Prompt and answer do not fit into the context.")
    question, answer = written[name]
    again, grams = repetition(answer.ids)
    loops = grams > 0 and again / grams > MAX_REPETITION
    words = answer.text.split()
    faults = []
    if not words:
        faults.append("only white space" if answer.ids else "empty")
    if not answer.ended:
        faults.append(f"cut at {ANSWER_TOKENS} tokens")
    if loops:
        faults.append("repeats itself")
    if name == ROUTING and "search" not in answer.text.casefold():
        faults.append("names no search")
    if name == CAPABILITIES and words and len(words) < 5:
        faults.append("hardly a sentence")
    bound = "ends, does not loop" + (", names search" if name == ROUTING else ", a sentence")
    return row(
        "quality",
        name,
        title,
        not faults,
        f"{len(answer.ids)} tokens" + (f": {', '.join(faults)}" if faults else ", ends by itself"),
        "Rules see the form only; whether it makes sense is for you to read below.",
        bound=bound,
        detail=shown(question.query, answer),
    )


def shown(prompt: str, answer: Written) -> str:
    """Prompt and whole answer to be read; white space alone is spelled out."""
    return f"> {prompt}\n{answer.text.strip() or repr(answer.text)}"


def _repetition(answers: Sequence[Written]) -> CheckDone:
    counts = [repetition(answer.ids) for answer in answers]
    again, grams = sum(a for a, _ in counts), sum(g for _, g in counts)
    if not grams:
        why = "No answer is four tokens long, so there is nothing that could repeat."
        return skipped("quality", "repetition", "repetition", why)
    share = again / grams
    return row(
        "quality",
        "repetition",
        "repetition",
        share <= MAX_REPETITION,
        f"{share:.1%} of 4-grams",
        f"Of the 4-grams in {len(answers)} greedy answers, how many stood in the same answer "
        "before; a model that loops has most.",
        bound=f"at most {MAX_REPETITION:.0%}",
        number=share,
    )


def check_tool_calls(writer: Writer, generations: list[Generation]) -> list[CheckDone]:
    """Shares of JSON, of valid calls and of the right ones, over the tool prompts that ship."""
    tools = load_tools()
    every = load_prompts()
    prompts = [p for p in every if writer.fits(as_chat(p, tools), CALL_TOKENS)]
    titles = {
        "valid_json": "valid JSON",
        "valid_tool_calls": "valid tool calls",
        "right_tool_calls": "right tool calls",
    }
    if not prompts:
        why = f"None of the {len(every)} tool prompts fits into the model's context."
        return [skipped("quality", name, title, why) for name, title in titles.items()]
    answers = writer.write([as_chat(p, tools) for p in prompts], CALL_TOKENS, "calls tools")
    verdicts = [judge(a.text, p, tools) for a, p in zip(answers, prompts, strict=True)]
    for prompt, answer in zip(prompts, answers, strict=True):
        generations.append(
            Generation(
                check="valid_tool_calls",
                prompt=prompt.query,
                text=answer.text,
                tokens=len(answer.ids),
                ended=answer.ended,
            )
        )
    left_out = len(every) - len(prompts)
    of = f"{len(prompts)} prompts" + (f" ({left_out} do not fit)" if left_out else "")
    reasons = Counter(v.why for v in verdicts if v.why)
    shares = {
        "valid_json": sum(v.is_json for v in verdicts) / len(verdicts),
        "valid_tool_calls": sum(v.is_call for v in verdicts) / len(verdicts),
        "right_tool_calls": sum(v.is_right for v in verdicts) / len(verdicts),
    }
    bounds = {
        "valid_json": MIN_JSON,
        "valid_tool_calls": MIN_CALLS,
        "right_tool_calls": MIN_RIGHT,
    }
    meanings = {
        "valid_json": "How often the whole answer is one JSON value, as the prompt asks.",
        "valid_tool_calls": "How often it calls a tool on offer with arguments that fit the "
        "tool's JSON Schema.",
        "right_tool_calls": "How often the call is the one that the query asks for.",
    }
    example = shown(prompts[0].query, answers[0])
    details = {
        "valid_json": example,
        "valid_tool_calls": listed(f"{n} × {why}" for why, n in reasons.most_common()),
    }
    return [
        row(
            "quality",
            name,
            title,
            shares[name] >= bounds[name],
            f"{shares[name]:.0%} of {of}",
            meanings[name],
            bound=f"at least {bounds[name]:.0%}",
            detail=details.get(name, ""),
            number=shares[name],
        )
        for name, title in titles.items()
    ]


def check_speed(writer: Writer) -> list[CheckDone]:
    """Tokens a second; told, not judged."""
    prompt, answer, size = writer.speeds()
    return [
        row(
            "quality",
            "prompt_speed",
            "reading speed",
            True,
            f"{prompt:,.0f} tokens/s",
            f"How quickly a prompt of {size} tokens is read, on this machine, in transformers.",
            number=prompt,
        ),
        row(
            "quality",
            "generation_speed",
            "writing speed",
            True,
            f"{answer:,.1f} tokens/s",
            "How quickly one answer is written, on this machine, in transformers.",
            number=answer,
        ),
    ]
