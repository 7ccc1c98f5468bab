"""Owns the answers that an expert writes: to which prompts, in which batches, sampled how, kept on
disk so that an interrupted run goes on and ends with the same answers.

It does not own the prompts and the verdicts (`engine.data`), how an expert writes (`teacher`), nor
what is learnt from the answers (`corpus`).
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
from engine.prompts.answers import AnswerFile, Batch, Head, Judged, Written, select, to_example
from engine.prompts.prompt import Prompt, load_prompts, nfc
from engine.prompts.sampling import sampling_of
from engine.prompts.variants import prompts as endless_prompts
from engine.text.examples import Example, Message

_BATCHES_TOGETHER = 8
"""Prompts of so many batches are sorted by length, so that little is padded."""


def choose(
    capabilities: Sequence[str], per_prompt: int, most: int | None, seed: int
) -> list[tuple[Prompt, int]]:
    """Which (prompt, sample) are answered: `per_prompt` each, `most` in all.

    Capabilities take turns, so that a small `most` hears of each of them. Without `most` these are
    the hand-written prompts; with it variants of them follow. A larger `most` begins with what a
    smaller one chooses.
    """
    if most is None:
        banks: list[Iterator[Prompt]] = [iter(load_prompts([name])) for name in capabilities]
    else:
        banks = [endless_prompts(name, seed) for name in capabilities]
    turns = _take_turns(banks)
    chosen = ((prompt, sample) for prompt in turns for sample in range(per_prompt))
    return list(chosen if most is None else islice(chosen, most))


def _take_turns(banks: list[Iterator[Prompt]]) -> Iterator[Prompt]:
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
    beat: Callable[[str], None],
    commit: str = "",
) -> list[Judged]:
    """Let the expert answer the prompts (as `config` says how long, how sampled), and judge it.

    Answers lie in `cache_dir`/<expert>/answers-<digest>.jsonl, a line for each finished batch; what
    is there already is not written again. What a batch holds and its seed depend on the arguments
    only, so an interrupted run ends with the answers of an undisturbed one. `beat` is called at
    every token and may raise to interrupt. Emits Progress `answers:<expert>` and, at the end,
    AnswersJudged. `commit` is the expert's revision, for the record.
    """
    if not chosen:
        return []
    spec = teacher.spec
    folder = cache_dir / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest(teacher, config, seed, commit)
    file = AnswerFile(folder / f"answers-{digest}.jsonl")
    precision = str(teacher.model.dtype).removeprefix("torch.")
    file.begin(
        Head(
            expert=spec.name,
            repo=spec.repo,
            commit=commit or spec.sha256 or spec.revision,
            precision=precision,
            seed=seed,
            digest=digest,
        )
    )
    _, finished = file.read()
    verdicts = file.read_verdicts()
    progress = _Progress(spec.name, spec.title, len(chosen), emit)
    found: dict[tuple[str, int], tuple[Written, str]] = {}
    for batch in _batches(teacher, chosen, config.generation_batch):
        key = _batch_key(digest, batch)
        if key in finished:
            done = _with_checks(finished[key], batch)
            if done != finished[key]:
                file.add(done)  # who reads the file alone judges by the same checks
            progress.skip(len(batch))
        else:
            done = _write(teacher, batch, key, config, beat)
            file.add(done)
            progress.add(len(batch))
        reasons = file.judge(done, verdicts, lambda: beat(f"judging answers of {spec.title}"))
        for written, reason in zip(done.answers, reasons, strict=True):
            found[written.prompt.id, written.sample] = (written, reason)
    progress.finish()
    judged = select([found[prompt.id, n] for prompt, n in chosen], config.keep_answers)
    emit(summary(spec.name, judged))
    return judged


def chosen_prompts(spec: ExpertSpec, config: RunConfig) -> list[tuple[Prompt, int]]:
    """What this expert is asked in a run, or in `data make` with the same config."""
    data = config.data
    asked = [c for c in spec.capabilities if not data.capabilities or c in data.capabilities]
    return choose(asked, data.answers_per_prompt, data.max_answers, config.seed)


def expert_commit(path: Path, spec: ExpertSpec) -> str:
    """Which state of the expert writes: the commit that was fetched, or a digest of its files."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return spec.sha256
    weights = sorted((name, file.sha256) for name, file in manifest.files.items())
    return manifest.revision or hashlib.sha256(repr(weights).encode()).hexdigest()


def kept_examples(judged: Sequence[Judged], expert: str) -> list[Example]:
    """The conversations that are learnt from, in their order."""
    return [to_example(one.written, expert) for one in judged if one.kept]


def summary(expert: str, judged: Sequence[Judged]) -> AnswersJudged:
    """How many answers were written, kept, and dropped by reason, for each capability."""
    counts: dict[tuple[str, str], int] = {}
    for one in judged:
        key = (one.written.prompt.capability, "" if one.kept else one.reason)
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
    beat: Callable[[str], None],
) -> Batch:
    """The answers to a batch; dialogues go on turn by turn, those that have no more fall out."""
    seed = int(key[:8], 16) >> 1  # below 2^31
    said: list[list[Message]] = [list(prompt.messages) for prompt, _ in batch]
    texts: list[list[str]] = [[] for _ in batch]
    whole: list[list[bool]] = [[] for _ in batch]
    samplings = [sampling_of(prompt.capability, config) for prompt, _ in batch]
    for turn in range(1 + max(len(prompt.then) for prompt, _ in batch)):
        # A dialogue in which nothing was answered does not go on.
        rows = [
            n
            for n, (prompt, _) in enumerate(batch)
            if len(prompt.then) >= turn and (turn == 0 or texts[n][-1])
        ]
        if not rows:
            break
        for n in rows:
            if turn:
                said[n].append(Message("user", batch[n][0].then[turn - 1]))
        answers = teacher.generate(
            [said[n] for n in rows],
            max_new_tokens=[samplings[n].max_tokens for n in rows],
            temperature=[samplings[n].temperature for n in rows],
            top_p=[samplings[n].top_p for n in rows],
            seed=seed + turn,
            batch_size=len(rows),
            heartbeat=beat,
        )
        for n, answer in zip(rows, answers, strict=True):
            texts[n].append(nfc(answer.text))
            whole[n].append(answer.complete)
            said[n].append(Message("assistant", texts[n][-1]))
    return Batch(
        key,
        seed,
        tuple(
            Written(prompt, sample, tuple(texts[n]), tuple(whole[n]), samplings[n])
            for n, (prompt, sample) in enumerate(batch)
        ),
    )


def _with_checks(batch: Batch, chosen: Sequence[tuple[Prompt, int]]) -> Batch:
    """The batch with the prompts as they are now: a check may have been put right since."""
    replace = msgspec.structs.replace
    now = {(prompt.id, sample): prompt for prompt, sample in chosen}
    answers = (replace(w, prompt=now[w.prompt.id, w.sample]) for w in batch.answers)
    return replace(batch, answers=tuple(answers))


def _digest(teacher: Teacher, config: DataConfig, seed: int, commit: str) -> str:
    """What the answers depend on besides the prompts of their batch (16 hex digits)."""
    spec = teacher.spec
    settings = (
        (spec.name, spec.repo, spec.revision, spec.sha256, commit),
        (spec.chat, spec.end_tokens, spec.stop_strings),
        teacher.model.config.to_json_string(),
        str(teacher.model.dtype),
        (config.max_answer_tokens, config.answer_temperature, config.answer_top_p),
        seed,
    )
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]


def _batch_key(digest: str, batch: Sequence[tuple[Prompt, int]]) -> str:
    """What a batch's answers depend on, its neighbours in it included; the checks are not."""
    content = [(p.id, p.capability, p.messages, p.then, sample) for p, sample in batch]
    return hashlib.sha256(digest.encode() + msgspec.json.encode(content)).hexdigest()[:24]


def _batches(
    teacher: Teacher, chosen: Sequence[tuple[Prompt, int]], size: int
) -> Iterator[list[tuple[Prompt, int]]]:
    """The chosen in batches of similar prompt length, so that little is padded.

    Sorted within pieces of a fixed number, so that asking for more later leaves all but the last
    piece as it was.
    """
    together = size * _BATCHES_TOGETHER
    for start in range(0, len(chosen), together):
        piece = chosen[start : start + together]
        lengths = {prompt.id: len(teacher.encode_prompt(prompt.messages)) for prompt, _ in piece}
        ordered = sorted(piece, key=lambda item: (lengths[item[0].id], item[0].id, item[1]))
        for first in range(0, len(ordered), size):
            yield ordered[first : first + size]


class _Progress:
    """Turns finished batches into Progress events; the rate is that of this session."""

    def __init__(self, expert: str, title: str, total: int, emit: Callable[[Event], None]) -> None:
        self._task = f"answers:{expert}"
        self._label = f"{title} writes answers"
        self._total = total
        self._emit = emit
        self._done = 0
        self._here = 0
        self._began = time.monotonic()
        self._send()

    def skip(self, count: int) -> None:
        self._done += count

    def add(self, count: int) -> None:
        self._done += count
        self._here += count
        self._send()

    def finish(self) -> None:
        self._send(finished=True)

    def _send(self, finished: bool = False) -> None:
        rate = self._here / max(time.monotonic() - self._began, 1e-9) if self._here else None
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
