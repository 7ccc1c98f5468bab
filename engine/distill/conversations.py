"""Owns the prompts that ship, and the answers that an expert writes to them: which prompts, in
which batches, kept on disk so that an interrupted run goes on and ends with the same answers.

It does not own how an expert writes (`teacher`), nor what is learnt from the answers (`corpus`).
"""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from engine.config import DataConfig
from engine.distill.teacher import Teacher
from engine.errors import GladiusError
from engine.run.events import Event, Progress
from engine.textdata import Example, Message
from engine.workspace import append_line, assets_dir


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conversation that waits for the expert's answer."""

    id: str
    capability: str
    messages: tuple[Message, ...]


class _Written(msgspec.Struct, frozen=True):
    """One answer on disk."""

    prompt: str
    sample: int
    text: str
    complete: bool


class _Batch(msgspec.Struct, frozen=True):
    """A line of the answers' file: a batch is there whole or not at all."""

    batch: int
    answers: tuple[_Written, ...]


_batch_decoder = msgspec.json.Decoder(_Batch)
_prompt_decoder = msgspec.json.Decoder(Prompt)


def load_prompts(capabilities: Iterable[str], folder: Path | None = None) -> list[Prompt]:
    """The prompts of these capabilities, one capability after the other, as NFC.

    A capability without a prompt file has none. Raises GladiusError for a broken line.
    """
    folder = folder or assets_dir() / "prompts"
    prompts: list[Prompt] = []
    for capability in capabilities:
        path = folder / f"{capability}.jsonl"
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                prompt = _prompt_decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise GladiusError(f"{path}, line {number}: {error}; correct it") from error
            messages = tuple(Message(m.role, _nfc(m.content)) for m in prompt.messages)
            prompts.append(Prompt(prompt.id, prompt.capability, messages))
    return prompts


def choose(
    prompts: Sequence[Prompt], per_prompt: int, most: int | None
) -> list[tuple[Prompt, int]]:
    """Which (prompt, sample) are answered: `per_prompt` each, `most` in all.

    Capabilities take turns, so that a small `most` hears of each of them.
    """
    banks: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        banks.setdefault(prompt.capability, []).append(prompt)
    depth = max((len(bank) for bank in banks.values()), default=0)
    turns = [bank[n] for n in range(depth) for bank in banks.values() if n < len(bank)]
    chosen = [(prompt, sample) for sample in range(per_prompt) for prompt in turns]
    return chosen if most is None else chosen[:most]


def write_answers(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    cache_dir: Path,
    config: DataConfig,
    seed: int,
    emit: Callable[[Event], None],
    beat: Callable[[str], None],
) -> list[Example]:
    """Let the expert answer the prompts (as `config` says how many, how long, how sampled).

    Answers lie in `cache_dir`/<expert>/answers-<digest>.jsonl, a line for each finished batch; what
    is there already is not written again. Batches and their seeds depend on the arguments only, so
    an interrupted run ends with the answers of an undisturbed one. `beat` is called at every token
    and may raise to interrupt. Empty answers are left out. Emits Progress `answers:<expert>`.
    """
    chosen = choose(prompts, config.answers_per_prompt, config.max_answers)
    if not chosen:
        return []
    spec = teacher.spec
    folder = cache_dir / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest(teacher, chosen, config, seed)
    path = folder / f"answers-{digest}.jsonl"
    batches = _batches(teacher, chosen, config.generation_batch)
    kept = _read(path)
    progress = _Progress(spec.name, spec.title, len(chosen), emit)
    for number, batch in enumerate(batches):
        if number not in kept:
            answers = teacher.generate(
                [prompt.messages for prompt, _ in batch],
                max_new_tokens=config.max_answer_tokens,
                temperature=config.answer_temperature,
                top_p=config.answer_top_p,
                seed=_batch_seed(digest, number),
                batch_size=len(batch),
                beat=beat,
            )
            kept[number] = tuple(
                _Written(prompt.id, sample, _nfc(answer.text), answer.complete)
                for (prompt, sample), answer in zip(batch, answers, strict=True)
            )
            append_line(path, msgspec.json.encode(_Batch(number, kept[number])))
            progress.add(len(batch))
        else:
            progress.skip(len(batch))
    progress.finish()
    written = {(w.prompt, w.sample): w for answers in kept.values() for w in answers}
    return [
        Example(
            messages=(*prompt.messages, Message("assistant", answer.text)),
            capability=prompt.capability,
            expert=spec.name,
            complete=answer.complete,
        )
        for prompt, sample in chosen
        if (answer := written[prompt.id, sample]).text
    ]


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _digest(
    teacher: Teacher, chosen: Sequence[tuple[Prompt, int]], config: DataConfig, seed: int
) -> str:
    """What the answers depend on, and the batches they are written in (16 hex digits)."""
    spec = teacher.spec
    settings = (
        (spec.name, spec.repo, spec.revision, spec.sha256),
        (spec.chat, spec.end_tokens, spec.stop_strings),
        teacher.model.config.to_json_string(),
        str(teacher.model.dtype),
        (config.max_answer_tokens, config.answer_temperature, config.answer_top_p),
        config.generation_batch,
        seed,
        chosen,
    )
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]


def _batch_seed(digest: str, number: int) -> int:
    """A seed below 2^31 for each batch, unlike those of other settings."""
    hashed = hashlib.sha256(f"{digest}/{number}".encode()).digest()
    return int.from_bytes(hashed[:4], "big") >> 1


def _batches(
    teacher: Teacher, chosen: Sequence[tuple[Prompt, int]], size: int
) -> list[list[tuple[Prompt, int]]]:
    """The chosen in batches of similar prompt length, so that little is padded."""
    lengths = {prompt.id: len(teacher.encode_prompt(prompt.messages)) for prompt, _ in chosen}
    ordered = sorted(chosen, key=lambda item: (lengths[item[0].id], item[0].id, item[1]))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _read(path: Path) -> dict[int, tuple[_Written, ...]]:
    """The finished batches by number; a line that a crash left torn counts as not written."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    found: dict[int, tuple[_Written, ...]] = {}
    for line in lines:
        try:
            batch = _batch_decoder.decode(line)
        except msgspec.MsgspecError:
            continue
        found[batch.batch] = batch.answers
    return found


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
