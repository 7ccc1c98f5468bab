"""Assign text to experts, choose the held-out examples, and encode the text as blocks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from engine.config import RunConfig
from engine.distill.align.blocks import BlockEncoder, TextBlock, normalise
from engine.distill.teacher.target_store import TargetStore
from engine.errors import UsageError
from engine.events import DataReady
from engine.experts.registry import ExpertSpec
from engine.prompts.prompt import family_digest, is_reserved
from engine.text.examples import Example, encode_example
from engine.text.sources import read_source


def example_key(example: Example) -> str:
    """Digest of an example's text; the same for every expert."""
    text = normalise(example)
    parts: list[object] = [text.messages, text.text]
    if text.tools:
        parts.append(text.tools)
    content = msgspec.json.encode(parts)
    return hashlib.sha256(content).hexdigest()


def split_key(example: Example) -> str:
    """Digest that decides whether an example is held out: of its family, else of its text.

    Variants of one prompt are so trained on, or held out, together.
    """
    return family_digest(example.family) if example.family else example_key(example)


def is_held_out_by_digest(key: str, share: float) -> bool:
    """Whether a digest is in the `share` of all digests that is held out."""
    return int(key[:13], 16) < share * 16**13


def is_held_out_of_stream(example: Example, share: float) -> bool:
    """Whether a streamed example is held out.

    Its split key decides, independently of all other text; reserved families always are.
    """
    reserved = example.family is not None and is_reserved(example.family)
    return reserved or is_held_out_by_digest(split_key(example), share)


def experts_for(
    example: Example, experts: Sequence[ExpertSpec], capabilities: Sequence[str] = ()
) -> list[str]:
    """Names of the experts that teach an example.

    An example that names an expert of the run goes to that expert; one with a capability (or from a
    text with `capabilities`) goes to the experts that have it, if any do; all others go to all.
    """
    names = [spec.name for spec in experts]
    if example.expert in names:
        return [str(example.expert)]
    required = [example.capability] if example.capability else list(capabilities)
    capable = [spec.name for spec in experts if any(c in spec.capabilities for c in required)]
    return capable or names


def assign_to_experts(
    examples: Iterable[Example], experts: Sequence[ExpertSpec]
) -> dict[str, list[Example]]:
    """The user's examples by the experts that teach them."""
    shares: dict[str, list[Example]] = {spec.name: [] for spec in experts}
    for example in examples:
        for name in experts_for(example, experts):
            shares[name].append(example)
    return shares


def read_files(sources: Sequence[str]) -> list[Example]:
    """All examples of the files and folders; UsageError names file and line."""
    return [example for source in sources for example in read_source(source)]


def held_out_keys(
    examples: Mapping[str, Sequence[Example]], share: float, max_count: int
) -> frozenset[str]:
    """Split keys of the held-out examples: those with the smallest digests.

    All reserved families; in addition as many families and single texts as make `share` of all
    examples, or `max_count`; at least one of each expert's. An example that several experts teach
    is held out of all of them.
    """
    keys = {name: sorted({split_key(e) for e in part}) for name, part in examples.items()}
    sizes = Counter({example_key(e): split_key(e) for p in examples.values() for e in p}.values())
    target = max(1, round(min(share * sum(sizes.values()), max_count)))
    held = {
        split_key(e)
        for part in examples.values()
        for e in part
        if e.family and is_reserved(e.family)
    }
    count = sum(sizes[key] for key in held)
    for key in sorted(sizes.keys() - held):
        if count >= target:
            break
        held.add(key)
        count += sizes[key]
    for part in keys.values():
        if part and held.isdisjoint(part):
            held.add(part[0])
    return frozenset(held)


def corpus_digest(examples: Sequence[Example], held_out: frozenset[str]) -> str:
    """Digest of everything that the blocks of a shard are made of."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
        digest.update(b"\n")
    for key in sorted(held_out):
        digest.update(key.encode())
    return digest.hexdigest()


@dataclass
class TextStats:
    """Statistics of an expert's encoded and scored text; stored with its shards."""

    skipped: int = 0
    text_bytes: int = 0
    teacher_tokens: int = 0
    student_tokens: int = 0
    positions: int = 0
    aligned: int = 0
    inside: int = 0
    crossing: int = 0
    dropped: int = 0
    mean_weight: float = 0.0
    mean_residual: float = 0.0

    def add_block(self, block: TextBlock) -> None:
        alignment = block.alignment
        self.text_bytes += block.text_bytes
        self.teacher_tokens += len(block.teacher_ids)
        self.student_tokens += len(block.student_ids)
        self.positions += len(alignment)
        self.aligned += int((alignment.offset == 0).sum())
        self.inside += int((alignment.offset > 0).sum())
        self.crossing += int((alignment.inside_stop >= 0).sum())

    def with_scores(self, stores: Sequence[TargetStore]) -> TextStats:
        """A copy with mean weight, residual and dropped positions of the scored stores."""
        weights = [w for store in stores for w in store.column("weight")]
        residuals = [r for store in stores for r in store.column("residual")]
        count = max(1, sum(len(w) for w in weights))
        return replace(
            self,
            mean_weight=sum(float(w.sum()) for w in weights) / count,
            mean_residual=sum(float(r.sum()) for r in residuals) / count,
            dropped=sum(int((w == 0).sum()) for w in weights),
        )

    def event(self, expert: str, blocks: int, held_out: int) -> DataReady:
        """The statistics as an event; blocks, held_out: numbers of blocks."""
        positions = max(1, self.positions)
        return DataReady(
            expert=expert,
            blocks=blocks,
            held_out_blocks=held_out,
            skipped_blocks=self.skipped,
            text_bytes=self.text_bytes,
            teacher_tokens=self.teacher_tokens,
            student_tokens=self.student_tokens,
            positions=self.positions,
            dropped_positions=self.dropped,
            aligned=self.aligned / positions,
            inside=self.inside / positions,
            crossing=self.crossing / positions,
            mean_weight=self.mean_weight,
            mean_residual=self.mean_residual,
        )


@dataclass(frozen=True)
class EncodedCorpus:
    """An expert's text as blocks, for the student and the expert."""

    train: list[TextBlock]
    held_out: list[TextBlock]
    stats: TextStats


def encode_corpus(
    examples: Sequence[Example],
    held_out: frozenset[str],
    encoder: BlockEncoder,
    config: RunConfig,
    heartbeat: Callable[[str], None],
) -> EncodedCorpus:
    """Encode and align the examples, up to `data.max_teacher_tokens` of training text.

    held_out: split keys of the held-out examples. Duplicates are left out.
    """
    train: list[TextBlock] = []
    held_out_blocks: list[TextBlock] = []
    stats = TextStats()
    seen: set[str] = set()
    limit = config.data.max_teacher_tokens
    for example in examples:
        heartbeat("encoding text")
        key = example_key(example)
        if key in seen:
            continue
        seen.add(key)
        is_held_out = split_key(example) in held_out
        if is_held_out and len(held_out_blocks) >= config.data.max_held_out_blocks:
            continue  # enough to evaluate on; still not to be trained on
        if not is_held_out and limit is not None and stats.teacher_tokens >= limit:
            continue
        found = encoder.encode(example)
        stats.skipped += bool(found.problem)
        for block in found.blocks:
            stats.add_block(block)
            (held_out_blocks if is_held_out else train).append(block)
    return EncodedCorpus(train, held_out_blocks, stats)


def require_both_parts(encoded: EncodedCorpus, spec: ExpertSpec, examples: int) -> None:
    """UsageError where there is no block to train on, or none to evaluate on."""
    if encoded.train and encoded.held_out:
        return
    raise UsageError(
        f"expert {spec.name}: {examples} texts give {len(encoded.train)} training blocks and "
        f"{len(encoded.held_out)} evaluation blocks ({encoded.stats.skipped} skipped); at least "
        "one of each is needed: give more text with --data, or let the expert write answers "
        "(data.generate=true)"
    )
