"""The report of `data inspect`: counts, lengths, reasons for dropped answers, samples."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Literal, cast

import msgspec

from engine.errors import UsageError
from engine.foreign_text import shown
from engine.prompts.answers import (
    AnswerFile,
    Head,
    JudgedAnswer,
    answer_files,
    count_reasons,
    select,
)
from engine.prompts.checkers import REASONS
from engine.workspace import Workspace
from gladius_tui.format import NONE

_WIDTH = 96
_ROLE_WIDTH = 12
_SYSTEM_LINES = 3
"""Lines that are shown of a long system prompt."""


class CheckedAnswers(msgspec.Struct, frozen=True):
    """The answers of one file, with the verdict on each."""

    path: str
    head: Head
    answers: list[JudgedAnswer]


def read_answers(ws: Workspace, expert: str | None, keep: str) -> list[CheckedAnswers]:
    """All answer files below tmp/experts_cache, or those of one expert, oldest first.

    Raises:
        UsageError: the expert has written no answers, but others have.
    """
    root = ws.experts_cache_dir
    folders = sorted(p for p in root.glob("*") if p.is_dir()) if root.is_dir() else []
    names = [folder.name for folder in folders]
    if expert is not None and names and expert not in names:
        raise UsageError(
            f"{expert!r} has written no answers here; these experts have: {', '.join(names)}"
        )
    found: list[CheckedAnswers] = []
    for folder in folders:
        if expert is None or folder.name == expert:
            read = (_read(file, keep) for file in answer_files(folder))
            found += [answers for answers in read if answers is not None]
    return found


def _read(file: AnswerFile, keep: str) -> CheckedAnswers | None:
    head, batches = file.read()
    if head is None or not batches:
        return None
    verdicts = file.read_verdicts()
    answers = [
        (written, reason)
        for batch in batches.values()
        for written, reason in zip(batch.answers, file.judge(batch, verdicts), strict=True)
    ]
    mode = cast(Literal["right", "sound", "all"], keep)
    return CheckedAnswers(str(file.path), head, select(answers, mode))


def report_fields(file: CheckedAnswers) -> dict[str, Any]:
    """The counts as plain data, for JSON."""
    return {
        "path": file.path,
        **msgspec.to_builtins(file.head),
        "written": len(file.answers),
        "kept": sum(judged.kept for judged in file.answers),
        "capabilities": count_reasons(file.answers),
        "characters": _lengths(file.answers),
    }


def _lengths(answers: Sequence[JudgedAnswer]) -> dict[str, dict[str, int]]:
    """Median and longest kept answer of each capability, in characters."""
    lengths: dict[str, list[int]] = {}
    for judged in answers:
        if judged.kept:
            characters = sum(len(text) for text in judged.answer.texts)
            lengths.setdefault(judged.answer.prompt.capability, []).append(characters)
    return {
        name: {"median": sorted(values)[len(values) // 2], "longest": max(values)}
        for name, values in lengths.items()
    }


def report_lines(file: CheckedAnswers, *, samples: int, dropped: bool, seed: int) -> list[str]:
    """The report of one file: counts, then `samples` kept (or dropped) answers per capability."""
    lines = [*_count_lines(file), *_reason_lines(file.answers)]
    candidates = [judged for judged in file.answers if judged.kept != dropped]
    rng = Random(seed)
    for name in count_reasons(file.answers):
        group = [judged for judged in candidates if judged.answer.prompt.capability == name]
        for judged in rng.sample(group, min(samples, len(group))):
            lines += ["", *_sample_lines(judged)]
    return lines


def _count_lines(file: CheckedAnswers) -> list[str]:
    head, answers = file.head, file.answers
    kept = sum(judged.kept for judged in answers)
    source = (head.repo, head.commit[:12] or "unknown commit", head.precision, f"seed {head.seed}")
    lines = [
        f"{head.expert} ({', '.join(source)}): {len(answers):,} answers, {kept:,} kept",
        f"  {file.path}",
        "",
        f"  {'capability':<14}{'written':>8}{'kept':>7}{'median':>8}{'longest':>9}"
        "  reasons for dropping",
    ]
    lengths = _lengths(answers)
    for name, row in count_reasons(answers).items():
        length = lengths.get(name, {"median": 0, "longest": 0})
        counts = Counter({reason: n for reason, n in row.items() if reason != "kept"})
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in counts.most_common())
        lines.append(
            f"  {name:<14}{sum(row.values()):>8,}{row.get('kept', 0):>7,}{length['median']:>8,}"
            f"{length['longest']:>9,}  {reasons or NONE}"
        )
    return lines


def _reason_lines(answers: Sequence[JudgedAnswer]) -> list[str]:
    total = Counter(judged.reason for judged in answers if not judged.kept)
    if not total:
        return []
    return [
        "",
        "  dropped, all capabilities (lengths above are in characters)",
        *(
            f"  {n:>8,}  {reason:<15} {REASONS.get(reason, '')}"
            for reason, n in total.most_common()
        ),
    ]


def _sample_lines(judged: JudgedAnswer) -> list[str]:
    prompt = judged.answer.prompt
    reason = f" · {judged.reason}" if judged.reason else ""
    lines = [f"── {prompt.id} · {prompt.group}{reason}"]
    turns = [(message.role, message.content) for message in prompt.messages]
    for turn, text in enumerate(judged.answer.texts):
        if turn:
            turns.append(("user", prompt.then[turn - 1]))
        cut = "" if judged.answer.complete[turn] else " (cut)"
        turns.append((f"answer{cut}", text))
    for role, text in turns:
        wrapped = [
            part
            for line in text.splitlines() or [""]
            for part in (textwrap.wrap(shown(line), _WIDTH - _ROLE_WIDTH - 2) or [""])
        ]
        if role == "system" and len(wrapped) > _SYSTEM_LINES + 1:
            rest = len(wrapped) - _SYSTEM_LINES
            wrapped = [*wrapped[:_SYSTEM_LINES], f"… ({rest} more lines)"]
        lines += [
            f"  {role if n == 0 else '':<{_ROLE_WIDTH}}{part}" for n, part in enumerate(wrapped)
        ]
    return lines
