"""Store the experts' answers and the verdicts on them, and select those to train on.

An answer file (JSON Lines) begins with a Head and has one line for each finished Batch. Verdicts
are stored in a second file, so that a new version of the checkers needs no new answers.
`distill.data.conversations` generates the answers.
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
from engine.small_files import BAD_JSON
from engine.text.examples import Example, Message
from engine.workspace import append_line

Keep = Literal["right", "sound", "all"]

# Reasons that do not depend on the question; keep="sound" drops answers for these only.
UNSOUND = ("empty", "markup", "looping", "echo", "near_duplicate")


class Head(msgspec.Struct, frozen=True, tag="head"):
    """The origin of all answers in a file."""

    expert: str
    repo: str
    commit: str
    """The downloaded revision of the expert, or the sha256 of its file."""
    precision: str
    seed: int
    digest: str
    """Digest of everything that the answers depend on."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answers of an expert to one prompt, one for each turn of the dialogue."""

    prompt: Prompt
    sample: int
    texts: tuple[str, ...]
    complete: tuple[bool, ...]
    """For each text, whether it was finished (not cut off by the token limit)."""
    sampling: Sampling


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Answers that were generated together; written to the file as one line."""

    key: str
    seed: int
    answers: tuple[Answer, ...]


class Verdicts(msgspec.Struct, frozen=True):
    """The reason why each answer of a batch is wrong ("": right), and the digest of the checks."""

    batch: str
    checks: str
    reasons: tuple[str, ...]


class JudgedAnswer(msgspec.Struct, frozen=True):
    """An answer, the reason why it is wrong ("": right), and whether it is trained on."""

    answer: Answer
    reason: str
    kept: bool


_line_decoder = msgspec.json.Decoder(Head | Batch)
_verdict_decoder = msgspec.json.Decoder(Verdicts)
_encode = msgspec.json.Encoder().encode


class AnswerFile:
    """An answer file and its file of verdicts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.verdicts_path = path.with_name(path.name.replace("answers-", "verdicts-", 1))

    def read(self) -> tuple[Head | None, dict[str, Batch]]:
        """The head and the batches by key; lines that a crash left incomplete are skipped."""
        head: Head | None = None
        batches: dict[str, Batch] = {}
        for line in _lines(self.path):
            try:
                record = _line_decoder.decode(line)
            except BAD_JSON:
                continue
            if isinstance(record, Head):
                head = record
            else:
                batches[record.key] = record
        return head, batches

    def begin(self, head: Head) -> None:
        """Write the head if the file has none."""
        if self.read()[0] is None:
            append_line(self.path, _encode(head))

    def add(self, batch: Batch) -> None:
        """Append a finished batch."""
        append_line(self.path, _encode(batch))

    def read_verdicts(self) -> dict[tuple[str, str], tuple[str, ...]]:
        """The stored reasons by (key of the batch, digest of the checks)."""
        found: dict[tuple[str, str], tuple[str, ...]] = {}
        for line in _lines(self.verdicts_path):
            try:
                verdicts = _verdict_decoder.decode(line)
            except BAD_JSON:
                continue
            found[verdicts.batch, verdicts.checks] = verdicts.reasons
        return found

    def judge(
        self,
        batch: Batch,
        known: dict[tuple[str, str], tuple[str, ...]],
        heartbeat: Callable[[], None] = lambda: None,
    ) -> tuple[str, ...]:
        """The reasons of a batch: from `known`, else judged now and stored in file and `known`.

        `heartbeat` is called before each answer that is judged; running code takes a moment.
        """
        checks = checks_digest(batch.answers)
        if (reasons := known.get((batch.key, checks))) is None:
            found: list[str] = []
            for answer in batch.answers:
                heartbeat()
                found.append(reason_of(answer))
            reasons = tuple(found)
            if "code_not_run" not in reasons:  # another system may be able to run it
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
    """The answer files in an expert's cache folder, oldest first."""
    paths = sorted(folder.glob("answers-*.jsonl"), key=lambda path: path.stat().st_mtime)
    return [AnswerFile(path) for path in paths]


def checks_digest(answers: Iterable[Answer]) -> str:
    """Digest of everything that the verdicts depend on: the checks and the version of the rules."""
    texts = [str(VERSION), *(check_digest(answer.prompt.check) for answer in answers)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def reason_of(answer: Answer) -> str:
    """The reason why an answer is wrong, "" if it is right. A dialogue is incomplete if any
    of its answers is."""
    questions = [m.content for m in answer.prompt.messages if m.role == "user"]
    questions += answer.prompt.then
    return judge(answer.texts, all(answer.complete), questions, answer.prompt.check)


def is_open(prompt: Prompt) -> bool:
    """Whether a cut-off answer to this prompt is still usable: its beginning is enough for the
    checker and for training."""
    return isinstance(prompt.check, RefusalCheck | None) or prompt.capability == "fluency"


def select(answers: Sequence[tuple[Answer, str]], keep: Keep = "right") -> list[JudgedAnswer]:
    """Decide which answers are trained on; returns all of them in their order.

    keep="right" drops wrong answers, and cut-off ones unless `is_open`; "sound" drops only those
    with a reason in UNSOUND; "all" drops only empty ones. Except with "all", of answers that are
    nearly the same (question included) only the first is kept.
    """
    seen_by_capability: dict[str, NearDuplicates] = {}
    judged: list[JudgedAnswer] = []
    for number, (answer, reason) in enumerate(answers):
        kept = _is_kept(answer, reason, keep)
        if kept and keep != "all":
            capability = answer.prompt.capability
            seen = seen_by_capability.setdefault(capability, NearDuplicates())
            if seen.add(str(number), _dialogue_text(answer)) is not None:
                reason, kept = "near_duplicate", False
        judged.append(JudgedAnswer(answer, reason, kept))
    return judged


def _is_kept(answer: Answer, reason: str, keep: Keep) -> bool:
    if not reason:
        return True
    if reason == "truncated" and is_open(answer.prompt):
        return all(answer.complete[:-1])
    if keep == "all":
        return reason != "empty"
    return keep == "sound" and reason not in UNSOUND


def _dialogue_text(answer: Answer) -> str:
    """The questions and answers as one text, for comparison."""
    questions = [m.content for m in answer.prompt.messages if m.role == "user"]
    return "\n".join((*questions, *answer.prompt.then, *answer.texts))


def to_example(answer: Answer, expert: str) -> Example:
    """The training conversation of an answer."""
    messages: list[Message] = list(answer.prompt.messages)
    for turn, text in enumerate(answer.texts):
        if turn:
            messages.append(Message("user", answer.prompt.then[turn - 1]))
        messages.append(Message("assistant", text))
    return Example(
        messages=tuple(messages),
        capability=answer.prompt.capability,
        expert=expert,
        family=answer.prompt.group,
        complete=all(answer.complete),
    )


def count_reasons(judged: Collection[JudgedAnswer]) -> dict[str, dict[str, int]]:
    """For each capability, the number of answers that were kept ("kept") or dropped, by reason."""
    table: dict[str, dict[str, int]] = {}
    for one in judged:
        row = table.setdefault(one.answer.prompt.capability, {})
        outcome = "kept" if one.kept else one.reason
        row[outcome] = row.get(outcome, 0) + 1
    return dict(sorted(table.items()))
