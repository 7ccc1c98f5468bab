"""Owns what experts wrote, on disk: every answer with where it comes from, the verdicts on them,
and which of them are learnt from. No torch; the writing is `distill.conversations`'.

An answers' file begins with a Head and has a line for each finished Batch; the verdicts lie beside
it, so that a better checker asks no expert to write again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from engine.prompts.checkers import VERSION, check_digest, judge
from engine.prompts.duplicates import NearDuplicates
from engine.prompts.prompt import Prompt, RefusalCheck
from engine.prompts.sampling import Sampling
from engine.text.examples import Example, Message
from engine.workspace import append_line

Keep = Literal["right", "sound", "all"]

# Faults of any text, whatever was asked; "sound" drops these only.
UNSOUND = ("empty", "markup", "looping", "echo", "near_duplicate")


class Head(msgspec.Struct, frozen=True, tag="head"):
    """Where all answers of a file come from."""

    expert: str
    repo: str
    commit: str
    """The revision that was fetched, or the file's sha256."""
    precision: str
    seed: int
    digest: str
    """Of everything that the answers depend on."""


class Written(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answers to one prompt: one, or as many as the dialogue has turns."""

    prompt: Prompt
    sample: int
    texts: tuple[str, ...]
    complete: tuple[bool, ...]
    """Whether each came to its end, and was not cut."""
    sampling: Sampling


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Answers that were written together; on disk whole or not at all."""

    key: str
    seed: int
    answers: tuple[Written, ...]


class Verdicts(msgspec.Struct, frozen=True):
    """Why each answer of a batch is wrong ("" where it is not), by which checks."""

    batch: str
    checks: str
    reasons: tuple[str, ...]


class Judged(msgspec.Struct, frozen=True):
    """An answer, what is wrong with it, and whether it is learnt from."""

    written: Written
    reason: str
    kept: bool


_line_decoder = msgspec.json.Decoder(Head | Batch)
_verdict_decoder = msgspec.json.Decoder(Verdicts)
_encode = msgspec.json.Encoder().encode


class AnswerFile:
    """One file of answers and the verdicts beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts_path = path.with_name(path.name.replace("answers-", "verdicts-", 1))

    def read(self) -> tuple[Head | None, dict[str, Batch]]:
        """The head and the finished batches by key; a line that a crash tore is not there."""
        head: Head | None = None
        batches: dict[str, Batch] = {}
        for line in _lines(self.path):
            try:
                found = _line_decoder.decode(line)
            except msgspec.MsgspecError:
                continue
            if isinstance(found, Head):
                head = found
            else:
                batches[found.key] = found
        return head, batches

    def begin(self, head: Head) -> None:
        """Write the head, where there is none yet."""
        if self.read()[0] is None:
            append_line(self.path, _encode(head))

    def add(self, batch: Batch) -> None:
        append_line(self.path, _encode(batch))

    def read_verdicts(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The reasons by (batch, checks)."""
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for line in _lines(self.verdicts_path):
            try:
                verdicts = _verdict_decoder.decode(line)
            except msgspec.MsgspecError:
                continue
            found[verdicts.batch, verdicts.checks] = verdicts.reasons
        return found

    def judge(
        self,
        batch: Batch,
        known: dict[tuple[str, str], tuple[str, ...]],
        beat: Callable[[], None] = lambda: None,
    ) -> tuple[str, ...]:
        """The reasons of a batch: those that are known, else found now and written down.

        `beat` is called before each verdict that must be found; code takes a moment to run.
        """
        checks = checks_digest(batch.answers)
        if (reasons := known.get((batch.key, checks))) is None:
            found: list[str] = []
            for written in batch.answers:
                beat()
                found.append(reason_of(written))
            reasons = tuple(found)
            append_line(self.verdicts_path, _encode(Verdicts(batch.key, checks, reasons)))
            known[batch.key, checks] = reasons
        return reasons


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except FileNotFoundError:
        return


def answer_files(folder: Path) -> list[AnswerFile]:
    """The answers' files of an expert's cache folder, the oldest first."""
    paths = sorted(folder.glob("answers-*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [AnswerFile(path) for path in paths]


def checks_digest(answers: Iterable[Written]) -> str:
    """What the verdicts on these answers depend on, the version of the rules included."""
    texts = [str(VERSION), *(check_digest(written.prompt.check) for written in answers)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def reason_of(written: Written) -> str:
    """What is wrong with an answer; a dialogue is cut where any of its answers is."""
    asked = [m.content for m in written.prompt.messages if m.role == "user"]
    asked += written.prompt.then
    return judge(written.texts, all(written.complete), asked, written.prompt.check)


def is_open(prompt: Prompt) -> bool:
    """Whether the text that answers it may be cut: its beginning can be learnt from alone, and is
    all that a checker needs."""
    return isinstance(prompt.check, RefusalCheck | None) or prompt.capability == "fluency"


def select(answers: Sequence[tuple[Written, str]], keep: Keep = "right") -> list[Judged]:
    """Which answers are learnt from, in their order, and why the others are not.

    "right": wrong ones go, and cut ones where something is to be checked; "sound": only what is
    faulty as a text (UNSOUND); "all": only empty ones. Near-duplicates go but for "all": of texts
    that are nearly the same, with what was asked, the first one stays.
    """
    like: dict[str, NearDuplicates] = {}
    judged: list[Judged] = []
    for number, (written, reason) in enumerate(answers):
        kept = _may_stay(written, reason, keep)
        if kept and keep != "all":
            capability = written.prompt.capability
            seen = like.setdefault(capability, NearDuplicates())
            if seen.add(str(number), _said(written)) is not None:
                reason, kept = "near_duplicate", False
        judged.append(Judged(written, reason, kept))
    return judged


def _may_stay(written: Written, reason: str, keep: Keep) -> bool:
    if not reason:
        return True
    if reason == "truncated" and is_open(written.prompt):
        return all(written.complete[:-1])
    if keep == "all":
        return reason != "empty"
    return keep == "sound" and reason not in UNSOUND


def _said(written: Written) -> str:
    """What was asked and answered, for comparing."""
    asked = [m.content for m in written.prompt.messages if m.role == "user"]
    return "\n".join((*asked, *written.prompt.then, *written.texts))


def to_example(written: Written, expert: str) -> Example:
    """The conversation that is learnt from."""
    messages: list[Message] = list(written.prompt.messages)
    for turn, text in enumerate(written.texts):
        if turn:
            messages.append(Message("user", written.prompt.then[turn - 1]))
        messages.append(Message("assistant", text))
    return Example(
        messages=tuple(messages),
        capability=written.prompt.capability,
        expert=expert,
        family=written.prompt.group,
        complete=all(written.complete),
    )


def count_reasons(judged: Collection[Judged]) -> dict[str, dict[str, int]]:
    """By capability: how many were kept ("kept"), and dropped by reason."""
    table: dict[str, dict[str, int]] = {}
    for one in judged:
        row = table.setdefault(one.written.prompt.capability, {})
        word = "kept" if one.kept else one.reason
        row[word] = row.get(word, 0) + 1
    return dict(sorted(table.items()))
