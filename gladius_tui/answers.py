"""Owns how what experts wrote reads: counts, lengths, reasons and samples of `data inspect`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Literal, cast

import msgspec

from engine.errors import UsageError
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

_WIDTH = 96


class Answers(msgspec.Struct, frozen=True):
    """A file's answers, judged."""

    path: str
    head: Head
    judged: list[JudgedAnswer]


def read_all(ws: Workspace, expert: str | None, keep: str) -> list[Answers]:
    """All answers that lie below tmp/experts_cache, or one expert's, oldest file first."""
    found: list[Answers] = []
    root = ws.experts_cache_dir
    folders = sorted(p for p in root.glob("*") if p.is_dir()) if root.is_dir() else []
    names = [p.name for p in folders]
    if expert is not None and names and expert not in names:
        raise UsageError(
            f"{expert!r} has written nothing here; there are answers of: {', '.join(names)}"
        )
    for folder in folders:
        if expert is None or folder.name == expert:
            found += [one for file in answer_files(folder) if (one := _read(file, keep))]
    return found


def _read(file: AnswerFile, keep: str) -> Answers | None:
    head, batches = file.read()
    if head is None or not batches:
        return None
    verdicts = file.read_verdicts()
    answers = [
        (written, reason)
        for batch in batches.values()
        for written, reason in zip(batch.answers, file.judge(batch, verdicts), strict=True)
    ]
    kept = cast(Literal["right", "sound", "all"], keep)
    return Answers(str(file.path), head, select(answers, kept))


def plain_report(answers: Answers) -> dict[str, Any]:
    """The counts as plain data, for JSON."""
    return {
        "path": answers.path,
        **msgspec.to_builtins(answers.head),
        "written": len(answers.judged),
        "kept": sum(one.kept for one in answers.judged),
        "capabilities": count_reasons(answers.judged),
        "characters": _lengths(answers.judged),
    }


def _lengths(judged: Sequence[JudgedAnswer]) -> dict[str, dict[str, int]]:
    """Median and longest answer, characters, of what is kept of each capability."""
    lengths: dict[str, list[int]] = {}
    for one in judged:
        if one.kept:
            texts = one.answer.texts
            lengths.setdefault(one.answer.prompt.capability, []).append(sum(map(len, texts)))
    return {
        name: {"median": sorted(found)[len(found) // 2], "longest": max(found)}
        for name, found in lengths.items()
    }


def inspect_lines(answers: Answers, *, samples: int, dropped: bool, seed: int) -> list[str]:
    """The report of one file."""
    head, judged = answers.head, answers.judged
    kept = sum(one.kept for one in judged)
    lines = [
        f"{head.expert} ({head.repo}, {head.commit[:12] or 'unknown commit'}, {head.precision}, "
        f"seed {head.seed}): {len(judged):,} answers, {kept:,} kept",
        f"  {answers.path}",
        "",
        f"  {'capability':<14}{'written':>8}{'kept':>7}{'median':>8}{'longest':>9}"
        "  dropped because",
    ]
    lengths = _lengths(judged)
    for name, row in count_reasons(judged).items():
        size = lengths.get(name, {"median": 0, "longest": 0})
        reasons = Counter({word: n for word, n in row.items() if word != "kept"})
        said = ", ".join(f"{word} {n:,}" for word, n in reasons.most_common())
        lines.append(
            f"  {name:<14}{sum(row.values()):>8,}{row.get('kept', 0):>7,}{size['median']:>8,}"
            f"{size['longest']:>9,}  {said or '–'}"
        )
    total = Counter(one.reason for one in judged if not one.kept)
    if total:
        lines += ["", "  dropped in all (lengths above are characters)"]
        lines += [
            f"  {n:>8,}  {word:<15} {REASONS.get(word, '')}" for word, n in total.most_common()
        ]
    chosen = [one for one in judged if one.kept != dropped]
    rng = Random(seed)
    for name in count_reasons(judged):
        own = [one for one in chosen if one.answer.prompt.capability == name]
        for one in rng.sample(own, min(samples, len(own))):
            lines += ["", *_sample(one)]
    return lines


def _sample(one: JudgedAnswer) -> list[str]:
    prompt = one.answer.prompt
    why = f" · {one.reason}" if one.reason else ""
    lines = [f"── {prompt.id} · {prompt.group}{why}"]
    turns: list[tuple[str, str]] = []
    for message in prompt.messages:
        turns.append((message.role, message.content))
    for turn, text in enumerate(one.answer.texts):
        if turn:
            turns.append(("user", prompt.then[turn - 1]))
        cut = "" if one.answer.complete[turn] else " (cut)"
        turns.append((f"answer{cut}", text))
    for role, text in turns:
        wrapped = [
            part
            for line in text.splitlines() or [""]
            for part in (textwrap.wrap(_printable(line), _WIDTH - 14) or [""])
        ]
        if role == "system" and len(wrapped) > 4:
            wrapped = [*wrapped[:3], f"… ({len(wrapped) - 3} lines more)"]
        lines += [f"  {role if n == 0 else '':<12}{part}" for n, part in enumerate(wrapped)]
    return lines


def _printable(text: str) -> str:
    """The text without what would reach the terminal as a command."""
    return "".join(c if c.isprintable() else " " for c in text)
