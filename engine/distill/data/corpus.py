"""Assign text to experts, choose the held-out examples, and encode the text as blocks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from engine.config import RunConfig
from engine.distill.align.blocks import BlockEncoder, EncodedExample, TextBlock
from engine.distill.teacher.target_store import TargetStore
from engine.errors import GladiusError, UsageError
from engine.events import REPEATED, DataReady, TextsRead
from engine.experts.registry import ExpertSpec
from engine.prompts.prompt import family_digest, is_reserved
from engine.text.examples import Example, LeftOut, encode_example
from engine.text.forms import passage_end, passages
from engine.text.keys import example_key
from engine.text.sources import open_files, read_items
from engine.text.survey import Repetitions, text_bytes
from engine.text.tally import TextTally


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


@dataclass(frozen=True)
class FileTexts:
    """The text of a run's files that are read before the start.

    Attributes:
        examples: in order; repeated texts are still among them.
        left_out: what can't be read.
        table: of all, before they are encoded.
    """

    examples: list[Example]
    left_out: list[LeftOut]
    table: TextsRead


def read_files(sources: Sequence[str]) -> FileTexts:
    """All text of the files and folders; UsageError where there are none."""
    examples: list[Example] = []
    left_out: list[LeftOut] = []
    tally, repetitions = TextTally(), Repetitions()
    for item in read_items(open_files(sources)) if sources else ():
        if isinstance(item, LeftOut):
            left_out.append(item)
            tally.leave_out(item)
            continue
        for example in passages(item):
            examples.append(example)
            repeated = repetitions.is_repeated(example)
            tally.add(example, "left_out" if repeated else "learnt", REPEATED if repeated else "")
    return FileTexts(examples, left_out, tally.table())


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


def split_large_documents(
    examples: Mapping[str, Sequence[Example]],
    held_out: frozenset[str],
    budget: float,
    block_bytes: int,
) -> tuple[dict[str, list[Example]], frozenset[str]]:
    """The examples and held-out keys, with large held-out documents split in two.

    A document that alone is larger than all held-out text should be, and than two blocks, is held
    out only from where as much is left as is missing; the part before it is trained on.

    Args:
        budget: bytes of text that should be held out.
        block_bytes: bytes of a block, about.
    """
    sizes = {
        example_key(e): text_bytes(e)
        for part in examples.values()
        for e in part
        if split_key(e) in held_out
    }
    large = {key for key, size in sizes.items() if size > max(budget, 2 * block_bytes)}
    missing = budget - sum(size for key, size in sizes.items() if key not in large)
    parts: dict[str, tuple[Example, ...]] = {}
    for part in examples.values():
        for example in part:
            key = example_key(example)
            if key not in large or key in parts or example.text is None or example.family:
                continue
            parts[key] = _split_document(example, max(block_bytes, round(missing)))
            missing -= text_bytes(parts[key][-1])
    ends = {split_key(part[-1]) for part in parts.values()}
    divided = {
        name: [e for example in part for e in parts.get(example_key(example), (example,))]
        for name, part in examples.items()
    }
    return divided, held_out | ends


def _split_document(example: Example, size: int) -> tuple[Example, ...]:
    """The document in two parts, the second of about `size` bytes; cut at white space."""
    data = (example.text or "").encode()
    cut = passage_end(data[: max(1, len(data) - size)])
    texts = data[:cut].decode(), data[cut:].decode()
    if not all(text.strip() for text in texts):
        return (example,)
    change = msgspec.structs.replace
    return (
        change(example, text=texts[0], complete=False),
        change(example, text=texts[1], passage=example.passage + 1),
    )


def total_bytes(examples: Mapping[str, Sequence[Example]]) -> int:
    """Bytes of all texts, each once."""
    sizes = {example_key(e): text_bytes(e) for part in examples.values() for e in part}
    return sum(sizes.values())


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
    table: dict[str, Any] = field(default_factory=dict, compare=False)
    """The `TextsRead` of the text in memory, as plain data."""
    stream_held_out: list[str] = field(default_factory=list)
    """Split keys of streamed text that is held out, beside what its digest decides."""

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
    user_table: TextsRead = field(default_factory=TextsRead)
    """What became of the texts that came from files; the others were written by experts."""


def encode_text(encoder: BlockEncoder, example: Example) -> EncodedExample:
    """The blocks of one example; any fault of it is a reason to leave it out."""
    try:
        return encoder.encode(example)
    except (GladiusError, MemoryError):
        raise
    except Exception as error:  # a chat template or a tokenizer can raise anything
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        return EncodedExample([], "can't be encoded", detail[:300])


def count_encoded(
    tally: TextTally, example: Example, found: EncodedExample, is_held_out: bool = False
) -> None:
    """Count an example that was encoded."""
    if not found.blocks:
        tally.add(example, "left_out", found.problem or "nothing to learn", found.detail)
    elif found.problem:
        tally.add(example, "cut", found.problem, found.detail)
    else:
        tally.add(example, "held_out" if is_held_out else "learnt")


def encode_corpus(
    examples: Sequence[Example],
    held_out: frozenset[str],
    encoder: BlockEncoder,
    config: RunConfig,
    heartbeat: Callable[[str], None],
    left_out: Sequence[LeftOut] = (),
) -> EncodedCorpus:
    """Encode and align the examples, up to `data.max_teacher_tokens` of training text.

    held_out: split keys of the held-out examples. Duplicates are left out.
    left_out: texts that could not be read; counted.
    """
    train: list[TextBlock] = []
    held_out_blocks: list[TextBlock] = []
    stats, tally, user_tally = TextStats(), TextTally(), TextTally()
    for item in left_out:
        tally.leave_out(item)
        user_tally.leave_out(item)
    seen: set[str] = set()
    limit, most = config.data.max_teacher_tokens, config.data.max_held_out_blocks
    for example in examples:
        heartbeat("encoding text")
        key = example_key(example)
        if key in seen:
            tally.add(example, "left_out", REPEATED)
            continue
        seen.add(key)
        is_held_out = split_key(example) in held_out
        enough = is_held_out and len(held_out_blocks) >= most  # still not to be trained on
        if enough or (not is_held_out and limit is not None and stats.teacher_tokens >= limit):
            tally.add(example, "unused")
            continue
        found = encode_text(encoder, example)
        stats.skipped += bool(found.problem)
        count_encoded(tally, example, found, is_held_out)
        if example.where:
            count_encoded(user_tally, example, found, is_held_out)
        blocks = found.blocks[: most - len(held_out_blocks)] if is_held_out else found.blocks
        for block in blocks:
            stats.add_block(block)
        (held_out_blocks if is_held_out else train).extend(blocks)
    stats.table = msgspec.to_builtins(tally.table())
    return EncodedCorpus(train, held_out_blocks, stats, user_tally.table())


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
