"""Owns which text each expert teaches, what of it is held out, and its preparation: tokenised,
aligned and, for cached targets, scored into shards that an interrupted run goes on with.

It does not own where answers come from (`conversations`) nor the projection.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import msgspec
import torch

from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder, TextBlock, make_blocks, normalise
from engine.distill.align.projection import Projector
from engine.distill.teacher.scoring import score_blocks
from engine.distill.teacher.sparse_targets import BlockTargets
from engine.distill.teacher.target_store import TargetStore
from engine.distill.teacher.teacher import Teacher
from engine.errors import UsageError
from engine.events import DataReady
from engine.experts.registry import ExpertSpec
from engine.prompts.prompt import family_digest, is_reserved
from engine.text.examples import Example, encode_example
from engine.text.sources import read_source

SHARD_POSITIONS = 16384


def example_key(example: Example) -> str:
    """Digest of an example's text, whoever teaches it."""
    text = normalise(example)
    content = msgspec.json.encode([text.messages, text.text])
    return hashlib.sha256(content).hexdigest()


def split_key(example: Example) -> str:
    """What decides whether an example is held out: its family, else its text alone. So variants of
    one prompt are learnt from, or measured on, together."""
    return family_digest(example.family) if example.family else example_key(example)


def held_by_digest(key: str, share: float) -> bool:
    """Whether a digest is among the `share` of all that is held out."""
    return int(key[:13], 16) < share * 16**13


def held_of_stream(example: Example, share: float) -> bool:
    """Whether a streamed text is held out: its split key decides, whatever other text there is;
    reserved families always are."""
    reserved = example.family is not None and is_reserved(example.family)
    return reserved or held_by_digest(split_key(example), share)


def takers(
    example: Example, experts: Sequence[ExpertSpec], capabilities: Sequence[str] = ()
) -> list[str]:
    """Who teaches an example.

    One that names an expert of the run goes to it; one with a capability (or with those of the
    text that it is from) to the experts that have it, if any do; everything else to all.
    """
    names = [spec.name for spec in experts]
    if example.expert in names:
        return [str(example.expert)]
    wanted = [example.capability] if example.capability else list(capabilities)
    able = [spec.name for spec in experts if any(c in spec.capabilities for c in wanted)]
    return able or names


def assign(examples: Iterable[Example], experts: Sequence[ExpertSpec]) -> dict[str, list[Example]]:
    """Who teaches which of the user's examples."""
    shares: dict[str, list[Example]] = {spec.name: [] for spec in experts}
    for example in examples:
        for name in takers(example, experts):
            shares[name].append(example)
    return shares


def read_files(sources: Sequence[str]) -> list[Example]:
    """All examples of the files and folders; UsageError names file and line."""
    return [example for source in sources for example in read_source(source)]


def held_out_keys(
    examples: Mapping[str, Sequence[Example]], share: float, most: int
) -> frozenset[str]:
    """Split keys of the examples that are kept for evaluation: those with the smallest digests.

    Reserved families all; beyond them as many families and single texts as `share` of all
    examples needs, or `most`; at least one of each expert's. An example that several experts teach
    is held out of all of them.
    """
    keys = {name: sorted({split_key(e) for e in part}) for name, part in examples.items()}
    sizes = Counter({example_key(e): split_key(e) for p in examples.values() for e in p}.values())
    wanted = max(1, round(min(share * sum(sizes.values()), most)))
    held = {
        split_key(e)
        for part in examples.values()
        for e in part
        if e.family and is_reserved(e.family)
    }
    count = sum(sizes[key] for key in held)
    for key in sorted(sizes.keys() - held):
        if count >= wanted:
            break
        held.add(key)
        count += sizes[key]
    for part in keys.values():
        if part and held.isdisjoint(part):
            held.add(part[0])
    return frozenset(held)


def corpus_digest(examples: Sequence[Example], held_out: frozenset[str]) -> str:
    """What a shard's text depends on."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
        digest.update(b"\n")
    for key in sorted(held_out):
        digest.update(key.encode())
    return digest.hexdigest()


@dataclass
class Tally:
    """What an expert's text came to, on the way to DataReady."""

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

    def block(self, block: TextBlock) -> None:
        alignment = block.alignment
        self.text_bytes += block.text_bytes
        self.teacher_tokens += len(block.teacher_ids)
        self.student_tokens += len(block.student_ids)
        self.positions += len(alignment)
        self.aligned += int((alignment.offset == 0).sum())
        self.inside += int((alignment.offset > 0).sum())
        self.crossing += int((alignment.inside_stop >= 0).sum())

    def scored(self, stores: Sequence[TargetStore]) -> Tally:
        """With what the scored stores say of how the expert is heard."""
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


@dataclass
class ReadText:
    """An expert's text, tokenised by both and aligned."""

    train: list[TextBlock] = field(default_factory=list)
    held_out: list[TextBlock] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def read_text(
    examples: Sequence[Example],
    held_out: frozenset[str],
    student: ChatEncoder,
    teacher: ChatEncoder,
    spec: ExpertSpec,
    config: RunConfig,
    beat: Callable[[str], None],
    needs_both: bool = True,
) -> ReadText:
    """Tokenises and aligns the examples, up to `data.max_teacher_tokens`.

    Raises:
        UsageError: no block is left to train on, or none to evaluate on (where `needs_both`).
    """
    text = ReadText()
    seen: set[str] = set()
    most = config.data.max_teacher_tokens
    for example in examples:
        beat(f"reading text for {spec.title}")
        key = example_key(example)
        if key in seen:
            continue
        seen.add(key)
        is_held = split_key(example) in held_out
        if is_held and len(text.held_out) >= config.data.max_held_out_blocks:
            continue  # more than is measured on, and still not to be learnt
        if not is_held and most is not None and text.tally.teacher_tokens >= most:
            continue
        for block in make_blocks(
            example,
            student,
            teacher,
            max_student_tokens=config.optimizer.max_seq_len,
            max_teacher_tokens=max(config.optimizer.max_seq_len, 2048),
            trust_end=spec.trust_end,
        ):
            if block is None or not len(block.alignment):
                text.tally.skipped += 1
                continue
            text.tally.block(block)
            (text.held_out if is_held else text.train).append(block)
    if needs_both and not (text.train and text.held_out):
        raise UsageError(
            f"expert {spec.name}: {len(examples)} texts give {len(text.train)} blocks to train on "
            f"and {len(text.held_out)} to evaluate on ({text.tally.skipped} skipped); at least one "
            "of each is needed: give more text with --data, or let the expert write answers "
            "(data.generate=true)"
        )
    return text


def score_into(
    store: TargetStore,
    blocks: Sequence[TextBlock],
    teacher: Teacher,
    projector: Projector,
    config: RunConfig,
    student_size: int,
    tally: Tally,
    report: Callable[[int, int], None],
    with_teacher_nats: bool = False,
) -> None:
    """Scores the blocks that the store does not hold yet, shard by shard.

    `report(blocks done, teacher tokens done)` is called after each shard and in between; it may
    raise to stop, and what is written then stays and is gone on with.
    with_teacher_nats: as `score_blocks`.
    """
    shards = _shards(blocks)
    done = sum(len(shard) for shard in shards[: len(store.shards)])
    tokens = sum(len(b.teacher_ids) for b in blocks[:done])
    for number, shard in enumerate(shards):
        if number < len(store.shards):
            continue
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
        scored: list[BlockTargets] = []
        for start in range(0, len(shard), 16):
            group = shard[start : start + 16]
            scored += score_blocks(
                teacher,
                projector,
                group,
                temperature=config.loss.temperature,
                top_k=config.targets.top_k,
                draws=config.targets.draws,
                epochs=config.targets.draw_epochs,
                generator=generator,
                heartbeat=lambda _, at=(done, tokens): report(*at),
                with_teacher_nats=with_teacher_nats,
            )
            done += len(group)
            tokens += sum(len(b.teacher_ids) for b in group)
            report(done, tokens)
        store.add(scored, student_size)
    store.finish(asdict(tally))


def _shards(blocks: Sequence[TextBlock]) -> list[list[TextBlock]]:
    shards: list[list[TextBlock]] = []
    positions = SHARD_POSITIONS
    for block in blocks:
        if positions >= SHARD_POSITIONS:
            shards.append([])
            positions = 0
        shards[-1].append(block)
        positions += len(block.alignment)
    return shards
