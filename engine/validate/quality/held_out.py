"""Owns how a model does on text that its run held out: bits per byte against each expert's own, KL
and agreement with each expert.

The text and what the experts make of it come from the run's cache
(`engine.distill.teacher.target_store`); a
model whose run is not on this machine has none, and is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from engine.checkpoint.model_record import ModelRecord
from engine.distill.align.blocks import EncodedBlock
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.teacher.sparse_targets import TargetBatch
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.train.evaluation import evaluate_expert
from engine.events import CheckDone, ExpertScore
from engine.validate.checks.check import row, skipped
from engine.validate.checks.load import Loaded

# The bounds are this program's own judgement of a student that has learnt what it was taught; one
# that is many times smaller than its expert, or has seen little text, will not reach them.
MAX_RATIO = 1.75
"""Bits per byte of the student over those of the expert, on the same text. Of a text for which an
expert needs 0.25 bits a byte, a KL of 0.5 nats for each of its tokens of 4.5 bytes makes 0.41."""
MAX_KL = 0.5
"""Nats."""
MIN_AGREEMENT = 0.6
"""Share of positions with the same most probable token."""

_TITLES = {"bits_per_byte": "bits per byte", "kl": "KL", "agreement": "agreement"}
# About 20 seconds: 2 FLOPs a parameter and token, at what two CPU cores do at the least.
_CPU_FLOPS = 20 * 50e9
_LEAST_TOKENS = 4096


class Subset:
    """Every n-th block of a store, so that a large student is measured in bearable time."""

    def __init__(self, store: TargetStore, most_tokens: int) -> None:
        self.key = store.key
        lengths = store.token_counts()
        total = int(lengths.sum())
        stride = max(1, -(-total // max(1, most_tokens)))
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
    """An expert's held-out text, opened; or why it can't be."""

    expert: str
    store: TargetStore | None
    why: str = ""


def open_held_out(
    record: ModelRecord | None, cache: Path, folder: Path, loaded: Loaded
) -> list[HeldOut]:
    """What the model's run held out, for each expert of the run.

    cache: tmp/experts_cache, below which everything lies. folder: the model's, whose tokenizer the
    text must have been made with (one rebuilt from a GGUF file is the same only in what it does).
    """
    if record is None or not record.held_out:
        return []
    vocabulary = ByteVocabulary(
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        int(loaded.model.config.vocab_size),
    )
    return [_open(name, cache, folder, vocabulary) for name, folder in record.held_out.items()]


def _open(expert: str, cache: Path, folder: str, vocabulary: ByteVocabulary) -> HeldOut:
    path = (cache / folder).resolve()
    gone = f"The run's held-out text is not in {cache} any more; `train` makes it anew."
    if not path.is_relative_to(cache.resolve()):
        return HeldOut(expert, None, "The model names a folder that is not its run's.")
    try:
        manifest = msgspec.json.decode((path / "manifest.json").read_bytes())
        key = msgspec.convert(manifest["key"], ShardKey)
    except (OSError, msgspec.MsgspecError, KeyError, TypeError):
        return HeldOut(expert, None, gone)
    store = TargetStore(path, key)
    store.open()
    if not store.complete or not len(store):
        return HeldOut(expert, None, "The run's held-out text is damaged; `train` makes it anew.")
    if key.student_tokenizer != vocabulary.digest:
        return HeldOut(expert, None, "The held-out text was made for another tokenizer.")
    return HeldOut(expert, store)


def check_held_out(
    held: Sequence[HeldOut], loaded: Loaded, serve: Callable[[str], None]
) -> Iterator[CheckDone]:
    """The rows: over all text first, then each expert's three."""
    if not held:
        why = "The model does not say which text its run held out, so there is nothing to measure."
        yield skipped("quality", "bits_per_byte", "bits per byte", why)
        return
    results: list[_Result] = []
    rows: list[CheckDone] = []
    for part in held:
        if part.store is None:
            rows += [
                skipped("quality", f"{name}:{part.expert}", f"{part.expert} {title}", part.why)
                for name, title in _TITLES.items()
            ]
            continue
        result = _measure(part.expert, part.store, loaded, serve)
        results.append(result)
        rows += _expert_rows(result)
    if not results:
        yield skipped("quality", "bits_per_byte", "bits per byte", held[0].why)
    else:
        yield _overall(results)
    yield from rows


@dataclass(frozen=True)
class _Result:
    score: ExpertScore
    nats: float
    text_bytes: int
    own: float | None
    """The expert's own bits per byte on the same blocks; None where it is not known."""
    blocks: int
    all_blocks: int
    temperature: float


def _measure(
    expert: str, store: TargetStore, loaded: Loaded, serve: Callable[[str], None]
) -> _Result:
    parameters = sum(p.numel() for p in loaded.model.parameters())
    most = max(_LEAST_TOKENS, int(_CPU_FLOPS / (2 * parameters)))
    subset: Any = Subset(store, most if loaded.device.type == "cpu" else 10 * _LEAST_TOKENS)
    score, nats, text_bytes = evaluate_expert(
        loaded.model,
        subset,
        temperature=store.key.temperature,
        tokens_per_batch=4096,
        device=loaded.device,
        dtype=loaded.dtype,
        heartbeat=serve,
    )
    own = store.teacher_bits_per_byte(list(subset.blocks))
    shape = (len(subset), len(store), store.key.temperature)
    return _Result(score, nats, text_bytes, own, *shape)


def _overall(results: Sequence[_Result]) -> CheckDone:
    text_bytes = sum(r.text_bytes for r in results)
    value = sum(r.score.bits_per_byte * r.text_bytes for r in results) / max(1, text_bytes)
    known = [(r.own, r.text_bytes) for r in results if r.own is not None]
    own = None
    if len(known) == len(results):
        own = sum(bits * size for bits, size in known) / max(1, text_bytes)
    return _bits("bits_per_byte", "bits per byte", value, own, "the expert", _blocks(results))


def _expert_rows(result: _Result) -> Iterator[CheckDone]:
    score = result.score
    name = score.expert
    yield _bits(
        f"bits_per_byte:{name}",
        f"{name} bits per byte",
        score.bits_per_byte,
        result.own,
        name,
        _blocks([result]),
    )
    if score.kl is None or score.agreement is None:
        why = f"{name} can't be heard at any position of this text."
        yield skipped("quality", f"kl:{name}", f"{name} KL", why)
        yield skipped("quality", f"agreement:{name}", f"{name} agreement", why)
        return
    yield row(
        "quality",
        f"kl:{name}",
        f"{name} KL",
        score.kl <= MAX_KL,
        f"{score.kl:.3f} nats",
        f"How far the student's next token is from what {name} expects, at T = "
        f"{result.temperature:g}; 0 is the same distribution.",
        bound=f"at most {MAX_KL:g}",
        number=score.kl,
    )
    yield row(
        "quality",
        f"agreement:{name}",
        f"{name} agreement",
        score.agreement >= MIN_AGREEMENT,
        f"{score.agreement:.1%}",
        f"How often the student's most probable token is {name}'s, over "
        f"{score.positions:,} positions.",
        bound=f"at least {MIN_AGREEMENT:.0%}",
        number=score.agreement,
    )


def _bits(
    name: str, title: str, value: float, own: float | None, whose: str, measured: str
) -> CheckDone:
    if own is None:
        meaning = (
            f"Bits that the student needs for a byte of text it never saw ({measured}); {whose}: "
            "not known, for the text was scored by an earlier version."
        )
        return row("quality", name, title, True, f"{value:.3f}", meaning, number=value)
    ratio = value / own if own > 0 else float("inf")
    return row(
        "quality",
        name,
        title,
        ratio <= MAX_RATIO,
        f"{value:.3f}, {ratio:.1f} times {whose}'s own",
        f"Bits that the student needs for a byte of text it never saw ({measured}); 8 is knowing "
        f"nothing, {whose} itself needs {own:.3f}.",
        bound=f"at most {MAX_RATIO:g} times {own:.3f}",
        number=value,
    )


def _blocks(results: Sequence[_Result]) -> str:
    blocks, every = sum(r.blocks for r in results), sum(r.all_blocks for r in results)
    return f"{blocks:,} of {every:,} blocks" if blocks < every else f"{blocks:,} blocks"
