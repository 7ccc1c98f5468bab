"""Let an expert write answers to its prompts, in batches that are stored as they finish, and check
the answers.

An interrupted run continues with the next batch and ends with the same answers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from engine.config import DataConfig, RunConfig
from engine.distill.teacher.teacher import Teacher
from engine.events import AnswersJudged, Event, Progress, ReasonCount
from engine.experts.registry import MANIFEST, ExpertSpec, Manifest
from engine.prompts.answers import (
    Answer,
    AnswerFile,
    Batch,
    Head,
    JudgedAnswer,
    select,
    to_example,
)
from engine.prompts.prompt import Prompt, load_prompts, nfc
from engine.prompts.sampling import sampling_of
from engine.prompts.variants.generate import endless_prompts
from engine.small_files import Damaged, read_json
from engine.text.examples import Example, Message

_SORTED_BATCHES = 8
"""Batches whose prompts are sorted by length together, to reduce padding."""


def choose(
    capabilities: Sequence[str], per_prompt: int, max_count: int | None, seed: int
) -> list[tuple[Prompt, int]]:
    """The (prompt, sample number) pairs to answer: `per_prompt` of each prompt, `max_count` in all.

    Capabilities alternate, so that a small `max_count` has prompts of each. Without `max_count` the
    hand-written prompts are chosen; with it, variants of them follow. A larger `max_count` begins
    with what a smaller one chooses.
    """
    if max_count is None:
        banks: list[Iterator[Prompt]] = [iter(load_prompts([name])) for name in capabilities]
    else:
        banks = [endless_prompts(name, seed) for name in capabilities]
    alternating = _alternate(banks)
    chosen = ((prompt, sample) for prompt in alternating for sample in range(per_prompt))
    return list(chosen if max_count is None else islice(chosen, max_count))


def _alternate(banks: list[Iterator[Prompt]]) -> Iterator[Prompt]:
    """One prompt of each bank in turn, until all are used up."""
    while banks:
        left = []
        for bank in banks:
            if (prompt := next(bank, None)) is not None:
                yield prompt
                left.append(bank)
        banks = left


def write_answers(
    teacher: Teacher,
    chosen: Sequence[tuple[Prompt, int]],
    cache_dir: Path,
    config: DataConfig,
    seed: int,
    emit: Callable[[Event], None],
    heartbeat: Callable[[str], None],
    *,
    commit: str = "",
    repo: str = "",
) -> list[JudgedAnswer]:
    """Answers of the expert to the prompts, with the verdicts of the checks.

    Answers are stored in `cache_dir`/<expert>/answers-<digest>.jsonl, a line for each finished
    batch; stored batches are not written again. The content and seed of a batch depend on the
    arguments only, so that an interrupted run ends with the same answers. Emits Progress
    `answers:<expert>` and, at the end, AnswersJudged.

    Args:
        chosen: (prompt, sample number) pairs.
        config: length and sampling of the answers.
        heartbeat: called at every token; may raise to interrupt.
        commit: the expert's revision, recorded in the file.
        repo: where the expert is from, if not `spec.repo`: in a moved root, its former path.
    """
    if not chosen:
        return []
    spec = teacher.spec
    digest = _digest(teacher, config, seed, commit, repo or spec.repo)
    file = _open_file(teacher, cache_dir / spec.name, digest, seed, commit)
    _, finished = file.read()
    verdicts = file.read_verdicts()
    progress = _Progress(spec.name, spec.title, len(chosen), emit)
    found: dict[tuple[str, int], tuple[Answer, str]] = {}
    for batch in _batches(teacher, chosen, config.generation_batch):
        key = _batch_key(digest, batch)
        if key in finished:
            done = _with_checks(finished[key], batch)
            if done != finished[key]:
                file.add(done)  # the file then has the checks that are used
            progress.skip(len(batch))
        else:
            done = _write(teacher, batch, key, config, heartbeat)
            file.add(done)
            progress.add(len(batch))
        reasons = file.judge(done, verdicts, lambda: heartbeat(f"checking answers of {spec.title}"))
        for written, reason in zip(done.answers, reasons, strict=True):
            found[written.prompt.id, written.sample] = (written, reason)
    progress.finish()
    judged = select([found[prompt.id, n] for prompt, n in chosen], config.keep_answers)
    emit(summary(spec.name, judged))
    return judged


def _open_file(teacher: Teacher, folder: Path, digest: str, seed: int, commit: str) -> AnswerFile:
    """The file of the answers with this digest, begun where it is new."""
    spec = teacher.spec
    folder.mkdir(parents=True, exist_ok=True)
    file = AnswerFile(folder / f"answers-{digest}.jsonl")
    file.begin(
        Head(
            expert=spec.name,
            repo=spec.repo,
            commit=commit or spec.sha256 or spec.revision,
            precision=str(teacher.model.dtype).removeprefix("torch."),
            seed=seed,
            digest=digest,
        )
    )
    return file


def chosen_prompts(spec: ExpertSpec, config: RunConfig) -> list[tuple[Prompt, int]]:
    """The prompts of this expert in a run, or in `data make` with the same config."""
    data = config.data
    capabilities = [c for c in spec.capabilities if not data.capabilities or c in data.capabilities]
    return choose(capabilities, data.answers_per_prompt, data.max_answers, config.seed)


def expert_commit(path: Path, spec: ExpertSpec) -> str:
    """The expert's revision: the downloaded commit, or a digest of its files."""
    try:
        manifest = read_json(path / MANIFEST, Manifest)
    except (OSError, Damaged):
        return spec.sha256
    weights = sorted((name, file.sha256) for name, file in manifest.files.items())
    return manifest.revision or hashlib.sha256(repr(weights).encode()).hexdigest()


def kept_examples(judged: Sequence[JudgedAnswer], expert: str) -> list[Example]:
    """The conversations that are kept for training, in their order."""
    return [to_example(one.answer, expert) for one in judged if one.kept]


def summary(expert: str, judged: Sequence[JudgedAnswer]) -> AnswersJudged:
    """How many answers were written, kept, and dropped by reason, for each capability."""
    counts: dict[tuple[str, str], int] = {}
    for one in judged:
        key = (one.answer.prompt.capability, "" if one.kept else one.reason)
        counts[key] = counts.get(key, 0) + 1
    return AnswersJudged(
        expert=expert,
        written=len(judged),
        kept=sum(one.kept for one in judged),
        counts=tuple(
            ReasonCount(capability=capability, reason=reason, count=count)
            for (capability, reason), count in sorted(counts.items())
        ),
    )


def _write(
    teacher: Teacher,
    batch: Sequence[tuple[Prompt, int]],
    key: str,
    config: DataConfig,
    heartbeat: Callable[[str], None],
) -> Batch:
    """The answers to a batch; dialogues are answered turn by turn."""
    seed = int(key[:8], 16) >> 1  # below 2^31
    dialogues: list[list[Message]] = [list(prompt.messages) for prompt, _ in batch]
    texts: list[list[str]] = [[] for _ in batch]
    complete: list[list[bool]] = [[] for _ in batch]
    samplings = [sampling_of(prompt.capability, config) for prompt, _ in batch]
    for turn in range(1 + max(len(prompt.then) for prompt, _ in batch)):
        # A dialogue ends at an empty answer.
        rows = [
            n
            for n, (prompt, _) in enumerate(batch)
            if len(prompt.then) >= turn and (turn == 0 or texts[n][-1])
        ]
        if not rows:
            break
        for n in rows:
            if turn:
                dialogues[n].append(Message("user", batch[n][0].then[turn - 1]))
        answers = teacher.generate(
            [dialogues[n] for n in rows],
            max_new_tokens=[samplings[n].max_tokens for n in rows],
            temperature=[samplings[n].temperature for n in rows],
            top_p=[samplings[n].top_p for n in rows],
            seed=seed + turn,
            batch_size=len(rows),
            heartbeat=heartbeat,
        )
        for n, answer in zip(rows, answers, strict=True):
            texts[n].append(nfc(answer.text))
            complete[n].append(answer.complete)
            dialogues[n].append(Message("assistant", texts[n][-1]))
    return Batch(
        key,
        seed,
        tuple(
            Answer(prompt, sample, tuple(texts[n]), tuple(complete[n]), samplings[n])
            for n, (prompt, sample) in enumerate(batch)
        ),
    )


def _with_checks(batch: Batch, chosen: Sequence[tuple[Prompt, int]]) -> Batch:
    """The batch with the prompts as they are now: a check may have been corrected since."""
    replace = msgspec.structs.replace
    current = {(prompt.id, sample): prompt for prompt, sample in chosen}
    answers = (replace(w, prompt=current[w.prompt.id, w.sample]) for w in batch.answers)
    return replace(batch, answers=tuple(answers))


def _digest(teacher: Teacher, config: DataConfig, seed: int, commit: str, repo: str) -> str:
    """Digest of everything but the prompts that the answers depend on (16 hex digits)."""
    spec = teacher.spec
    settings = (
        (spec.name, repo, spec.revision, spec.sha256, commit),
        (spec.chat, spec.end_tokens, spec.stop_strings),
        teacher.model.config.to_json_string(),
        str(teacher.model.dtype),
        (config.max_answer_tokens, config.answer_temperature, config.answer_top_p),
        seed,
    )
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]


def _batch_key(digest: str, batch: Sequence[tuple[Prompt, int]]) -> str:
    """Digest of everything that a batch's answers depend on; the checks are not part of it."""
    content = [(p.id, p.capability, p.messages, p.then, sample) for p, sample in batch]
    return hashlib.sha256(digest.encode() + msgspec.json.encode(content)).hexdigest()[:24]


def _batches(
    teacher: Teacher, chosen: Sequence[tuple[Prompt, int]], size: int
) -> Iterator[list[tuple[Prompt, int]]]:
    """The chosen pairs in batches of similar prompt length, to reduce padding.

    Sorted within pieces of a fixed size, so that more prompts change only the last piece.
    """
    piece_size = size * _SORTED_BATCHES
    for start in range(0, len(chosen), piece_size):
        piece = chosen[start : start + piece_size]
        lengths = {prompt.id: len(teacher.encode_prompt(prompt.messages)) for prompt, _ in piece}
        ordered = sorted(piece, key=lambda item: (lengths[item[0].id], item[0].id, item[1]))
        for first in range(0, len(ordered), size):
            yield ordered[first : first + size]


class _Progress:
    """Progress events of finished batches; the rate counts the answers of this session only."""

    def __init__(self, expert: str, title: str, total: int, emit: Callable[[Event], None]) -> None:
        self._task = f"answers:{expert}"
        self._label = f"{title} writes answers"
        self._total = total
        self._emit = emit
        self._done = 0
        self._written = 0
        self._began = time.monotonic()
        self._send()

    def skip(self, count: int) -> None:
        self._done += count

    def add(self, count: int) -> None:
        self._done += count
        self._written += count
        self._send()

    def finish(self) -> None:
        self._send(finished=True)

    def _send(self, finished: bool = False) -> None:
        rate = self._written / max(time.monotonic() - self._began, 1e-9) if self._written else None
        self._emit(
            Progress(
                task=self._task,
                label=self._label,
                done=self._done,
                total=self._total,
                unit="answers",
                rate=rate,
                eta=(self._total - self._done) / rate if rate else None,
                finished=finished,
            )
        )
