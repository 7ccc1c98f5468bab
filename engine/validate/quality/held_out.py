"""Evaluate the model on the text that its training run held out: bits per byte, KL from each
expert, and agreement with each expert.

The text and the experts' soft targets come from the run's cache: a model that was trained on
another machine cannot be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from tokenizers import Tokenizer

from engine.distill.align.blocks import EncodedBlock
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.teacher.sparse_targets import TargetBatch
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.train.evaluation import evaluate_expert
from engine.events import CheckDone, ExpertScore
from engine.small_files import Damaged, read_json
from engine.validate.check import Check, quality_row, skipped_row
from engine.validate.context import CheckContext
from engine.validate.loading import LoadedModel

# The bounds are this program's own judgement of a student that has learned what it was taught. One
# that is many times smaller than its experts, or has seen little text, will not reach them.
MAX_RATIO = 1.75
"""Bits per byte of the student divided by the expert's, on the same text. Where an expert needs
0.25 bits per byte, a KL of 0.5 nats per token of 4.5 bytes raises that to 0.41."""
MAX_KL = 0.5
"""Nats."""
MIN_AGREEMENT = 0.6
"""Share of positions with the same most probable token."""

_TITLES = {"bits_per_byte": "bits per byte", "kl": "KL", "agreement": "agreement"}
_CPU_FLOPS = 20 * 50e9
"""About 20 seconds on two CPU cores; a token takes 2 FLOPs per parameter."""
_MIN_TOKENS = 4096
_TOKENS_PER_BATCH = 4096


class Subset:
    """Every n-th block of a target store, to measure a large student in reasonable time."""

    def __init__(self, store: TargetStore, max_tokens: int) -> None:
        self.key = store.key
        lengths = store.token_counts()
        total = int(lengths.sum())
        stride = max(1, -(-total // max(1, max_tokens)))
        self.blocks = range(0, len(store), min(stride, len(store)))
        self._store = store
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self.blocks)

    def token_counts(self) -> np.ndarray:
        return self._lengths[list(self.blocks)]

    def block(self, block: int) -> EncodedBlock:
        return self._store.block(self.blocks[block])

    def targets(self, blocks: Sequence[int], epoch: int) -> TargetBatch:
        return self._store.targets([self.blocks[n] for n in blocks], epoch)


@dataclass(frozen=True)
class HeldOut:
    """An expert's held-out targets, or the reason why there are none."""

    expert: str
    store: TargetStore | None
    reason: str = ""


@dataclass(frozen=True)
class _Result:
    """Measurements on one expert's text.

    Attributes:
        score: the student's.
        text_bytes: bytes of text measured.
        expert_bits: the expert's own bits per byte on the same blocks; None where unknown.
        blocks, all_blocks: blocks measured, and blocks held out.
        temperature: of the soft targets.
    """

    score: ExpertScore
    text_bytes: int
    expert_bits: float | None
    blocks: int
    all_blocks: int
    temperature: float


def check_held_out(context: CheckContext) -> Iterator[CheckDone]:
    """A row over all text, then bits per byte, KL and agreement for each expert."""
    parts = open_held_out(context)
    if not parts:
        reason = "The model has no record of its run's held-out text, so nothing can be measured."
        yield CHECK.skipped(reason)
        return
    results: list[_Result] = []
    rows: list[CheckDone] = []
    for part in parts:
        if part.store is None:
            rows += [
                skipped_row(
                    "quality", f"{name}:{part.expert}", f"{part.expert} {title}", part.reason
                )
                for name, title in _TITLES.items()
            ]
            continue
        result = _measure(part.store, context.model, context.heartbeat)
        results.append(result)
        rows += _expert_rows(result)
    if results:
        yield _overall_row(results)
    else:
        yield CHECK.skipped(parts[0].reason)
    yield from rows


def open_held_out(context: CheckContext) -> list[HeldOut]:
    """The held-out targets of each expert of the model's run.

    The text must have been made with the tokenizer in the model's folder. (The tokenizer rebuilt
    from a GGUF file has another digest.)
    """
    record = context.record
    if record is None or not record.held_out:
        return []
    vocabulary = ByteVocabulary(
        Tokenizer.from_file(str(context.folder / "tokenizer.json")), context.model.vocab_size
    )
    cache = context.workspace.experts_cache_dir
    return [_open(expert, cache, path, vocabulary) for expert, path in record.held_out.items()]


def _open(expert: str, cache: Path, folder: str, vocabulary: ByteVocabulary) -> HeldOut:
    path = (cache / folder).resolve()
    if not path.is_relative_to(cache.resolve()):
        reason = "The model's record names a folder outside the cache of the workspace."
        return HeldOut(expert, None, reason)
    try:
        manifest = read_json(path / "manifest.json")
        key = msgspec.convert(manifest["key"], ShardKey)
    except (OSError, Damaged, msgspec.MsgspecError, KeyError, TypeError):
        reason = f"The run's held-out text is no longer in {cache}; `train` creates it again."
        return HeldOut(expert, None, reason)
    store = TargetStore(path, key)
    store.open()
    if not store.complete or not len(store):
        reason = "The run's held-out text is damaged; `train` creates it again."
        return HeldOut(expert, None, reason)
    if key.student_tokenizer != vocabulary.digest:
        return HeldOut(expert, None, "The held-out text was made for another tokenizer.")
    return HeldOut(expert, store)


def _measure(store: TargetStore, loaded: LoadedModel, heartbeat: Callable[[str], None]) -> _Result:
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    if loaded.device.type == "cpu":
        max_tokens = max(_MIN_TOKENS, int(_CPU_FLOPS / (2 * parameters)))
    else:
        max_tokens = 10 * _MIN_TOKENS
    subset = Subset(store, max_tokens)
    score, _, text_bytes = evaluate_expert(
        loaded.model,
        subset,  # type: ignore[arg-type]
        temperature=store.key.temperature,
        tokens_per_batch=_TOKENS_PER_BATCH,
        device=loaded.device,
        dtype=loaded.dtype,
        heartbeat=heartbeat,
    )
    return _Result(
        score=score,
        text_bytes=text_bytes,
        expert_bits=store.teacher_bits_per_byte(list(subset.blocks)),
        blocks=len(subset),
        all_blocks=len(store),
        temperature=store.key.temperature,
    )


def _overall_row(results: Sequence[_Result]) -> CheckDone:
    text_bytes = sum(result.text_bytes for result in results)
    bits = sum(r.score.bits_per_byte * r.text_bytes for r in results) / max(1, text_bytes)
    known = [(r.expert_bits, r.text_bytes) for r in results if r.expert_bits is not None]
    expert_bits = None
    if len(known) == len(results):
        expert_bits = sum(value * size for value, size in known) / max(1, text_bytes)
    return _bits_row(
        CHECK.name,
        CHECK.title,
        bits=bits,
        expert_bits=expert_bits,
        expert="the expert",
        measured=_blocks(results),
    )


def _expert_rows(result: _Result) -> Iterator[CheckDone]:
    score = result.score
    name = score.expert
    yield _bits_row(
        f"bits_per_byte:{name}",
        f"{name} bits per byte",
        bits=score.bits_per_byte,
        expert_bits=result.expert_bits,
        expert=name,
        measured=_blocks([result]),
    )
    if score.kl is None or score.agreement is None:
        reason = f"{name} has no soft targets at any position of this text."
        yield skipped_row("quality", f"kl:{name}", f"{name} KL", reason)
        yield skipped_row("quality", f"agreement:{name}", f"{name} agreement", reason)
        return
    yield quality_row(
        f"kl:{name}",
        f"{name} KL",
        passed=score.kl <= MAX_KL,
        value=f"{score.kl:.3f} nats",
        meaning=f"How far the student's next-token distribution is from {name}'s, at temperature "
        f"{result.temperature:g}; 0 means identical.",
        bound=f"at most {MAX_KL:g}",
        number=score.kl,
    )
    yield quality_row(
        f"agreement:{name}",
        f"{name} agreement",
        passed=score.agreement >= MIN_AGREEMENT,
        value=f"{score.agreement:.1%}",
        meaning=f"How often the student's most probable token is also {name}'s, over "
        f"{score.positions:,} positions.",
        bound=f"at least {MIN_AGREEMENT:.0%}",
        number=score.agreement,
    )


def _bits_row(
    name: str,
    title: str,
    *,
    bits: float,
    expert_bits: float | None,
    expert: str,
    measured: str,
) -> CheckDone:
    """Compare the student's bits per byte with those of `expert`, on the text `measured`."""
    meaning = f"Bits per byte of the student on held-out text ({measured}); lower is better, "
    if expert_bits is None:
        return quality_row(
            name,
            title,
            value=f"{bits:.3f}",
            meaning=meaning
            + f"{expert}'s own value is unknown, because an earlier version scored the text.",
            number=bits,
        )
    ratio = bits / expert_bits if expert_bits > 0 else float("inf")
    return quality_row(
        name,
        title,
        passed=ratio <= MAX_RATIO,
        value=f"{bits:.3f}, {ratio:.1f} times {expert}'s",
        meaning=meaning + f"8 is random guessing, {expert} has {expert_bits:.3f}.",
        bound=f"at most {MAX_RATIO:g} times {expert_bits:.3f}",
        number=bits,
    )


def _blocks(results: Sequence[_Result]) -> str:
    measured = sum(result.blocks for result in results)
    total = sum(result.all_blocks for result in results)
    return f"{measured:,} of {total:,} blocks" if measured < total else f"{measured:,} blocks"


CHECK = Check(group="quality", name="bits_per_byte", title="bits per byte", run=check_held_out)
