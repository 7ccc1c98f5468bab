"""Prepare one expert for training: encode its text, score it or open its shards, and turn it into
sources of training blocks and a held-out store.

Everything is cached on disk: an interrupted preparation resumes, and a resumed run finds it done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from engine.budget import scores_online
from engine.chat import ChatRefused
from engine.chat_tools import uses_tools
from engine.distill.align.blocks import BlockEncoder, ChatEncoder, TextBlock
from engine.distill.align.projection import Projector
from engine.distill.align.tables import load_tables, tables_digest
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data import corpus
from engine.distill.data.conversations import chosen_prompts
from engine.distill.data.corpus import EncodedCorpus, TextStats
from engine.distill.data.shard_scoring import score_into
from engine.distill.data.sources import CachedSource, OnlineSource, Source
from engine.distill.data.streamed_text import StreamedText
from engine.distill.jobs.sealed_files import differs, restore_shards, seal_shards
from engine.distill.jobs.setup import RunSetup
from engine.distill.teacher.loading import load_tokenizer
from engine.distill.teacher.model_config import context_of
from engine.distill.teacher.pool import LoadedExpert
from engine.distill.teacher.scoring import longest_block, teacher_encoder
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.lens import (
    ExpertProbes,
    load_probes,
    probes_digest,
    save_probes,
    score_probes,
)
from engine.distill.train.on_policy import OnPolicyTeacher
from engine.errors import UsageError
from engine.events import TextsRead
from engine.experts.registry import ExpertSpec
from engine.prompts.prompt import is_reserved
from engine.run.job import JobContext
from engine.template_date import undated
from engine.text.examples import Example, LeftOut, Message
from engine.text.tally import require_learnable

_PROBES = "probes.safetensors"


@dataclass(frozen=True)
class SplitText:
    """Shared by all experts of a run: the student's encoder, and the held-out text.

    Attributes:
        held_out: split keys of the held-out examples that are not streamed.
        fixed_text: keys of all text that is not streamed; empty where nothing is streamed.
        left_out: texts that can't be read.
        table: of the run's files, before they are encoded.
    """

    student: ChatEncoder
    held_out: frozenset[str]
    streamed: StreamedText | None
    fixed_text: frozenset[str]
    left_out: Sequence[LeftOut] = ()
    table: TextsRead = field(default_factory=TextsRead)


@dataclass(frozen=True)
class PreparedExpert:
    """One expert, ready to teach.

    Attributes:
        sources: (source, share of the expert's rows) by name. A source with the expert's own name
            has text in memory or in shards, the others are streams.
        held_out: held-out blocks with their targets.
        probes: the expert's distributions for the lens; None where none are cached.
        on_policy: scores what the student writes.
        stream_fingerprints: identity of each streamed text, by source name.
    """

    sources: dict[str, tuple[Source, float]]
    held_out: TargetStore
    probes: ExpertProbes | None
    on_policy: OnPolicyTeacher
    stream_fingerprints: dict[str, str]


@dataclass(frozen=True)
class _Shards:
    """An expert's stores, opened."""

    folder: Path
    train: TargetStore
    held_out: TargetStore
    required: tuple[TargetStore, ...]
    """The stores that this run needs, in the order in which they are reported."""
    complete: bool
    """Whether all required stores are completely scored."""


def prepare_expert(
    setup: RunSetup, spec: ExpertSpec, examples: Sequence[Example], split: SplitText
) -> PreparedExpert:
    """Prepare one expert; emits DataReady.

    examples: the expert's text in memory. The expert is loaded only where it is needed.
    """
    setup.ctx.checkpoint_point(f"preparing {spec.title}")
    shards = _open_shards(setup, spec, examples, split)
    online = setup.config.targets.source == "online"
    probes = _stored_probes(setup, spec, shards)
    if shards.complete and not online and not _streams(spec, split) and probes is not None:
        _seal_stored(setup, spec, shards, probes)
        return _from_shards(setup, spec, examples, split, shards, probes)
    expert = load_expert(setup, spec, split.student)
    encoded: EncodedCorpus | None = None
    if online or not shards.complete:
        encoded = _encode(setup, spec, examples, split, expert.encoder)
    # Before the text: shards that are complete then always have the probes next to them.
    if probes is None:
        probes = _score_probes(setup, shards, expert, split.student)
    if encoded is not None and not shards.complete:
        _score(setup, spec, encoded, shards, expert)
    _seal_stored(setup, spec, shards, probes)
    stats = TextStats(**shards.held_out.meta) if encoded is None else encoded.stats
    train = encoded.train if online and encoded is not None else None
    _report(
        setup,
        spec,
        stats,
        shards,
        split.table,
        len(shards.train) if train is None else len(train),
    )
    held_out = split.held_out | frozenset(stats.stream_held_out)
    sources, fingerprints = _sources(
        setup, spec, train, shards, replace(split, held_out=held_out), expert
    )
    load: Callable[[], LoadedExpert] = lambda: load_expert(setup, spec, split.student)  # noqa: E731
    if scores_online(setup.config):
        load = lambda: expert  # noqa: E731
    return PreparedExpert(
        sources=sources,
        held_out=shards.held_out,
        probes=probes,
        on_policy=_on_policy_teacher(setup, spec, examples, split, load),
        stream_fingerprints=fingerprints,
    )


def load_expert(setup: RunSetup, spec: ExpertSpec, student: ChatEncoder) -> LoadedExpert:
    """The expert in memory, with its projection into the student's vocabulary."""
    teacher = setup.pool.get(spec)
    encoder = teacher_encoder(teacher)
    return LoadedExpert(
        teacher=teacher,
        encoder=BlockEncoder(
            student=student,
            teacher=encoder,
            max_seq_len=setup.config.optimizer.max_seq_len,
            trust_end=spec.trust_end,
            max_teacher_tokens=longest_block(setup.config.optimizer.max_seq_len, teacher.context),
        ),
        projector=_projector(setup, teacher, encoder, student),
    )


def _projector(
    setup: RunSetup, teacher: Teacher, encoder: ChatEncoder, student: ChatEncoder
) -> Projector:
    name = teacher.spec.name
    with setup.ctx.busy("building the projection tables"):
        tables = load_tables(
            setup.workspace.experts_cache_dir,
            encoder.vocabulary,
            student.vocabulary,
            teacher.end_ids,
            student.end_ids[0],
        )
        if setup.sealing is not None:
            what = f"the projection tables of expert {name}"
            setup.sealing.compare("projections", name, tables_digest(tables), what)
    return Projector(tables, teacher.device, setup.config.targets.min_mass)


def _open_shards(
    setup: RunSetup, spec: ExpertSpec, examples: Sequence[Example], split: SplitText
) -> _Shards:
    key = _shard_key(setup, spec, examples, split)
    folder = setup.cache_dir(spec) / key.digest
    train, held_out = TargetStore(folder / "train", key), TargetStore(folder / "held_out", key)
    if setup.sealing is not None:
        what = f"the text that expert {spec.name} teaches"
        setup.sealing.compare("taken", spec.name, key.corpus, what)
        for store in (train, held_out):
            restore_shards(setup.sealing, store)
    online = setup.config.targets.source == "online"
    required = (held_out,) if online or not examples else (train, held_out)
    complete = [bool(store.open()) and store.complete for store in required]
    complete.append(held_out.meta.keys() == TextStats.__dataclass_fields__.keys())
    return _Shards(folder, train, held_out, required, all(complete))


def _shard_key(
    setup: RunSetup, spec: ExpertSpec, examples: Sequence[Example], split: SplitText
) -> ShardKey:
    config, path = setup.config, setup.expert_path(spec)
    limits = (config.optimizer.max_seq_len, config.data.max_teacher_tokens)
    template = undated(split.student.tokenizer.chat_template)
    text = f"{corpus.corpus_digest(examples, split.held_out)} {limits} {template}"
    longest = longest_block(config.optimizer.max_seq_len, context_of(path))
    if longest < longest_block(config.optimizer.max_seq_len, None):
        text += f" {longest}"  # its blocks are shorter than those of other experts
    if split.streamed:
        text += split.streamed.fingerprint(spec)
    return ShardKey(
        corpus=hashlib.sha256(text.encode()).hexdigest(),
        expert=spec.name,
        expert_digest=setup.identity(spec),
        teacher_tokenizer=ByteVocabulary(load_tokenizer(path, spec).backend_tokenizer).digest,
        student_tokenizer=split.student.vocabulary.digest,
        temperature=config.loss.temperature,
        top_k=config.targets.top_k,
        draws=config.targets.draws,
        epochs=config.targets.draw_epochs,
        min_mass=config.targets.min_mass,
        seed=config.seed,
        precision=str(setup.dtype).removeprefix("torch."),
    )


def _seal_stored(setup: RunSetup, spec: ExpertSpec, shards: _Shards, probes: ExpertProbes) -> None:
    """Compare complete shards and the probes with the run's seal, or add them to it."""
    if setup.sealing is None:
        return
    for store in shards.required:
        seal_shards(setup.sealing, store)
    what = f"the probes of expert {spec.name} in {shards.folder / _PROBES}"
    setup.sealing.compare("probes", spec.name, probes_digest(probes), what)


def _from_shards(
    setup: RunSetup,
    spec: ExpertSpec,
    examples: Sequence[Example],
    split: SplitText,
    shards: _Shards,
    probes: ExpertProbes,
) -> PreparedExpert:
    """The expert from complete shards, without loading it."""
    stats = TextStats(**shards.held_out.meta)
    _report(setup, spec, stats, shards, split.table, len(shards.train))
    return PreparedExpert(
        sources={spec.name: (CachedSource(shards.train), 1.0)},
        held_out=shards.held_out,
        probes=probes,
        on_policy=_on_policy_teacher(
            setup, spec, examples, split, lambda: load_expert(setup, spec, split.student)
        ),
        stream_fingerprints={},
    )


def _encode(
    setup: RunSetup,
    spec: ExpertSpec,
    examples: Sequence[Example],
    split: SplitText,
    encoder: BlockEncoder,
) -> EncodedCorpus:
    """The expert's text as blocks; held-out blocks of its streams are added.

    Raises UsageError where there is nothing to train on or to evaluate on.
    """
    encoded = corpus.encode_corpus(
        examples,
        split.held_out,
        encoder,
        setup.config,
        heartbeat=lambda _: setup.ctx.checkpoint_point(f"encoding text for {spec.title}"),
        left_out=split.left_out,
    )
    lenient = setup.config.data.lenient
    require_learnable(encoded.user_table, lenient=lenient, what=spec.title)
    if not _streams(spec, split):
        corpus.require_both_parts(encoded, spec, len(examples))
        return encoded
    assert split.streamed is not None
    streamed, keys = split.streamed.held_out_blocks(
        spec, encoder, split.fixed_text, required=not encoded.held_out
    )
    encoded.stats.stream_held_out = sorted(keys)
    for block in streamed:
        encoded.stats.add_block(block)
    if not encoded.held_out and not streamed:
        raise UsageError(
            f"expert {spec.name}: its streamed text has no examples to evaluate on; raise "
            f"data.held_out (now {setup.config.data.held_out}) or give more text"
        )
    return replace(encoded, held_out=encoded.held_out + streamed)


def _streams(spec: ExpertSpec, split: SplitText) -> bool:
    return split.streamed is not None and bool(split.streamed.streams_of(spec))


def _stored_probes(setup: RunSetup, spec: ExpertSpec, shards: _Shards) -> ExpertProbes | None:
    """The probes next to complete shards; None where they must be scored (again)."""
    path = shards.folder / _PROBES
    probes = load_probes(path) if shards.complete else None
    if probes is not None and setup.sealing is not None:
        digest = probes_digest(probes)
        probes = None if differs(setup.sealing, "probes", spec.name, digest) else probes
    if probes is None and shards.complete and path.exists():
        setup.ctx.log(f"{path} is damaged and is made again", "warning")
    return probes


def _score_probes(
    setup: RunSetup, shards: _Shards, expert: LoadedExpert, student: ChatEncoder
) -> ExpertProbes:
    """The expert's distributions for the lens, stored with its shards."""
    probes = score_probes(
        expert.teacher,
        expert.projector,
        student,
        expert.encoder.teacher,
        setup.ctx.checkpoint_point,
    )
    shards.folder.mkdir(parents=True, exist_ok=True)
    save_probes(shards.folder / _PROBES, probes)
    return probes


def _score(
    setup: RunSetup,
    spec: ExpertSpec,
    encoded: EncodedCorpus,
    shards: _Shards,
    expert: LoadedExpert,
) -> None:
    """Score what the required stores lack; the held-out text first."""
    parts = [(shards.held_out, encoded.held_out)]
    if shards.train in shards.required:
        parts.append((shards.train, encoded.train))
    total = sum(len(b.teacher_ids) for _, blocks in parts for b in blocks)
    progress = _ScoringProgress(spec, total, setup.ctx)
    for store, blocks in parts:
        score_into(
            store,
            blocks,
            expert.teacher,
            expert.projector,
            setup.config,
            encoded.stats,
            report=progress,
            with_teacher_nats=store is shards.held_out,
        )
        progress.base += sum(len(b.teacher_ids) for b in blocks)
    progress.finish()


class _ScoringProgress:
    """Reports an expert's scoring over both parts of its text, and carries out commands."""

    def __init__(self, spec: ExpertSpec, total: int, ctx: JobContext) -> None:
        self.base = 0
        """Tokens of the parts that are complete."""
        self._spec = spec
        self._total = total
        self._ctx = ctx

    def __call__(self, blocks: int, tokens: int) -> None:
        self._ctx.checkpoint_point(f"{self._spec.title} scores text")
        self._report(self.base + tokens)

    def finish(self) -> None:
        self._report(self._total, finished=True)

    def _report(self, done: int, finished: bool = False) -> None:
        self._ctx.progress(
            f"score:{self._spec.name}",
            f"{self._spec.title} scores its text",
            done,
            self._total,
            unit="tokens",
            finished=finished,
            every=1.0,
        )


def _differs(table: TextsRead, run_table: TextsRead) -> bool:
    """Whether an expert's table says more than that of the run."""
    run = {(reason.outcome, reason.reason, reason.count) for reason in run_table.reasons}
    return any((r.outcome, r.reason, r.count) not in run for r in table.reasons)


def _report(
    setup: RunSetup,
    spec: ExpertSpec,
    stats: TextStats,
    shards: _Shards,
    run_table: TextsRead,
    blocks: int,
) -> None:
    if stats.table:
        table = msgspec.convert(stats.table, TextsRead)
        if _differs(table, run_table):
            setup.ctx.emit(msgspec.structs.replace(table, expert=spec.name))
    scored = stats.with_scores(shards.required)
    setup.ctx.emit(scored.event(spec.name, blocks, len(shards.held_out)))


def _sources(
    setup: RunSetup,
    spec: ExpertSpec,
    online_blocks: Sequence[TextBlock] | None,
    shards: _Shards,
    split: SplitText,
    expert: LoadedExpert,
) -> tuple[dict[str, tuple[Source, float]], dict[str, str]]:
    """The expert's sources with their shares, and the fingerprints of its streamed texts.

    online_blocks: training blocks that are scored online; None where they are in shards.
    """

    def load_teacher() -> tuple[Teacher, Projector]:
        return setup.pool.get(spec), expert.projector

    sources: dict[str, tuple[Source, float]] = {}
    fingerprints: dict[str, str] = {}
    streams = _streams(spec, split)
    source: Source = CachedSource(shards.train)
    blocks = len(shards.train)
    if online_blocks is not None:
        source = OnlineSource(online_blocks, load_teacher, setup.config.loss.temperature)
        blocks = len(online_blocks)
    stream_share = 1.0
    if blocks:
        stream_share = setup.config.data.stream_share if streams else 0.0
        sources[spec.name] = source, 1.0 - stream_share
    if streams:
        assert split.streamed is not None
        for name, stream, share in split.streamed.sources(
            spec, expert.encoder, load_teacher, split.held_out
        ):
            sources[name] = stream, stream_share * share
            fingerprints[name] = stream.text.fingerprint
    sources = {name: part for name, part in sources.items() if part[1] > 0}
    return sources, {name: f for name, f in fingerprints.items() if name in sources}


def _on_policy_teacher(
    setup: RunSetup,
    spec: ExpertSpec,
    examples: Sequence[Example],
    split: SplitText,
    load: Callable[[], LoadedExpert],
) -> OnPolicyTeacher:
    """The expert as on-policy rounds need it, with the prompts of its training text."""
    prompts: dict[tuple[Message, ...], None] = {}
    if setup.config.schedule.on_policy_share > 0:
        chats = [e for e in examples if e.messages and corpus.split_key(e) not in split.held_out]
        turns = (_prompt_turns(chat) for chat in chats if not uses_tools(chat.messages, chat.tools))
        prompts = {prompt: None for prompt in turns if _can_answer(split.student, prompt)}
        if not prompts:
            chosen = chosen_prompts(spec, setup.config)
            trained_on = (prompt for prompt, _ in chosen if not is_reserved(prompt.group))
            prompts = {prompt.messages: None for prompt in trained_on}
    stays = scores_online(setup.config)
    release = (lambda: None) if stays else setup.pool.release
    return OnPolicyTeacher(spec, tuple(prompts), load, release)


def _can_answer(student: ChatEncoder, prompt: Sequence[Message]) -> bool:
    """Whether somebody asks, in a form that the student's chat template renders."""
    if not any(message.role == "user" for message in prompt):
        return False
    try:
        student.renderer.form(prompt)
    except ChatRefused:
        return False
    return True


def _prompt_turns(example: Example) -> tuple[Message, ...]:
    """A conversation up to where its last answer begins."""
    messages = example.messages or ()
    last = max((n for n, m in enumerate(messages) if m.role == "assistant"), default=0)
    return messages[:last]
