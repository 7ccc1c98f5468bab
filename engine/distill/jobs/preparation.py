"""Owns what comes before the first step: answers, the student's tokenizer, and each expert's text
made into a source of training blocks and a held-out store.

All of it is kept on disk, so that an interrupted preparation goes on and a resume finds it done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedTokenizerFast

from engine.budget import scores_online, streamed_files
from engine.checkpoint.layout import TOKENIZER
from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder
from engine.distill.align.projection import Projector, load_tables
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data import corpus
from engine.distill.data.conversations import (
    chosen_prompts,
    expert_commit,
    kept_examples,
    write_answers,
)
from engine.distill.data.corpus import ReadText, Tally
from engine.distill.data.sources import CachedSource, OnlineSource, Source
from engine.distill.data.streamed_text import StreamedText
from engine.distill.data.streams import StreamSource
from engine.distill.student import load_tokenizer, student_encoder, train_tokenizer
from engine.distill.teacher.scoring import teacher_encoder
from engine.distill.teacher.targets import ShardKey, TargetStore
from engine.distill.teacher.teacher import Teacher, load_teacher
from engine.distill.teacher.teacher import load_tokenizer as load_teacher_tokenizer
from engine.distill.train.capabilities import score_expert, student_prompts
from engine.distill.train.lens import ExpertProbes, load_probes, save_probes, score_probes
from engine.distill.train.on_policy import OnPolicyTeacher
from engine.errors import UsageError
from engine.experts.registry import ExpertSpec, expert_path, load_experts
from engine.prompts.checkers import VERSION as CHECKS
from engine.prompts.prompt import Prompt, is_reserved
from engine.run.job import JobContext
from engine.text.examples import Example, Message, encode_example, read_data_file
from engine.workspace import Workspace, write_bytes

_PROBES = "probes.safetensors"


class TeacherPool:
    """Experts in memory: one at a time, or all of a run (online teachers)."""

    def __init__(
        self,
        workspace: Workspace,
        ctx: JobContext,
        device: torch.device,
        dtype: torch.dtype,
        keep_all: bool,
    ) -> None:
        self._workspace = workspace
        self._ctx = ctx
        self._device = device
        self._dtype = dtype
        self._keep_all = keep_all
        self._loaded: dict[str, Teacher] = {}

    def get(self, spec: ExpertSpec) -> Teacher:
        if spec.name not in self._loaded:
            if not self._keep_all:
                self.release()
            with self._ctx.busy(f"loading {spec.title}"):
                self._loaded[spec.name] = load_teacher(
                    expert_path(self._workspace, spec),
                    spec,
                    self._device,
                    self._dtype,
                    self._ctx.heartbeat,
                )
        return self._loaded[spec.name]

    def release(self) -> None:
        """Gives the experts' memory back."""
        self._loaded.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Prepared:
    """One expert, ready to teach.

    Attributes:
        feeds: (source, share of the expert's rows) by name; a feed that has the expert's own name
            is text that is all there, the others are streams.
    """

    feeds: dict[str, tuple[Source, float]]
    held_out: TargetStore
    probes: ExpertProbes | None
    """What it says along the lens's sentences; None where nothing of it was kept."""
    judge: OnPolicyTeacher


def streamed_texts(prepared: Iterable[Prepared]) -> dict[str, str]:
    """Fingerprints of the streamed texts, by feed."""
    feeds = [(name, source) for part in prepared for name, (source, _) in part.feeds.items()]
    return {name: s.text.fingerprint for name, s in feeds if isinstance(s, StreamSource)}


class Preparation:
    """Prepares the experts of one run."""

    def __init__(
        self,
        workspace: Workspace,
        config: RunConfig,
        experts: Sequence[ExpertSpec],
        ctx: JobContext,
        pool: TeacherPool,
        dtype: torch.dtype,
    ) -> None:
        self.workspace = workspace
        self.config = config
        self.experts = experts
        self.ctx = ctx
        self.pool = pool
        self.dtype = dtype
        self.streamed: StreamedText | None = None
        """Text that is read while the student trains; `texts` opens it."""
        self.measured: list[Prompt] = []
        """What the capability table asks; `prepare` chooses it."""
        self._known: set[str] = set()  # keys of the text that is all there

    def texts(self) -> dict[str, list[Example]]:
        """Each expert's text that is all there: its own answers, then what the files give it.

        What is streamed is opened, and of it only a sample is read where targets are cached.
        """
        data = self.config.data
        with self.ctx.busy("opening the text"):
            streamed = streamed_files(data)
            whole = [source for source in data.files if source not in streamed]
            given = corpus.assign(corpus.read_files(whole), self.experts)
            opened = StreamedText(
                *(self.config, self.experts, self.workspace),
                self.ctx.checkpoint_point,
                self.ctx.log,
            )
        if self.config.targets.source == "cached":
            for spec in self.experts:
                given[spec.name] += opened.to_score(spec)
        elif opened:
            self.streamed = opened
        texts: dict[str, list[Example]] = {}
        for spec in self.experts:
            answers: list[Example] = []
            if data.generate and data.max_answers != 0:
                answers = self._answers(spec)
            texts[spec.name] = answers + given[spec.name]
        return texts

    def _answers(self, spec: ExpertSpec) -> list[Example]:
        """What the expert writes to the prompts; once whole, read back without loading it."""
        with self.ctx.busy("choosing prompts"):
            chosen = chosen_prompts(spec, self.config)
        path = expert_path(self.workspace, spec)
        expert = _expert_digest(path, spec)
        settings = [CHECKS, chosen, self.config.data, self.config.seed, str(self.dtype), expert]
        digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]
        whole = self._cache(spec) / f"text-{digest}.jsonl"
        if whole.is_file():
            return list(read_data_file(whole))
        judged = write_answers(
            self.pool.get(spec),
            chosen,
            self.workspace.experts_cache_dir,
            self.config.data,
            self.config.seed,
            self.ctx.emit,
            self.ctx.checkpoint_point,
            expert_commit(path, spec),
        )
        answers = kept_examples(judged, spec.name)
        if answers:
            write_bytes(whole, b"".join(encode_example(a) + b"\n" for a in answers))
        return answers

    def tokenizer(self, texts: Mapping[str, Sequence[Example]]) -> PreTrainedTokenizerFast:
        """The student's tokenizer; one that is trained is kept beside the checkpoints."""
        size = self.config.student.vocab_size
        kept = tokenizer_path(self.workspace, self.config)
        if self.config.student.tokenizer != "train" or (kept / "tokenizer.json").is_file():
            return load_tokenizer(kept, size)
        with self.ctx.busy("training the student's tokenizer"):
            sampled = self.streamed.for_tokenizer() if self.streamed else []
            unique = dict.fromkeys(
                text
                for part in (*texts.values(), sampled)
                for example in part
                for text in _texts(example)
            )
            tokenizer = train_tokenizer(unique, size)
            tokenizer.save_pretrained(kept)
        self.ctx.log(f"trained a tokenizer of {size:,} tokens on the run's own text")
        return load_tokenizer(kept, size)

    def prepare(
        self, texts: Mapping[str, Sequence[Example]], tokenizer: PreTrainedTokenizerFast
    ) -> dict[str, Prepared]:
        """Every expert's source and held-out store; emits DataReady for each."""
        data = self.config.data
        student = student_encoder(tokenizer, self.config.student.vocab_size)
        held = corpus.held_out_keys(texts, data.held_out, data.max_held_out_blocks)
        if self.streamed:
            self._known = {corpus.example_key(e) for part in texts.values() for e in part}
        schedule = self.config.schedule
        with self.ctx.busy("choosing what capabilities are measured on"):
            self.measured = student_prompts(
                *(tokenizer, self.experts, schedule.capability_prompts),
                *(schedule.capability_tokens, self.config.optimizer.max_seq_len),
            )
        prepared: dict[str, Prepared] = {}
        for spec in self.experts:
            prepared[spec.name] = self._expert(spec, texts[spec.name], held, student)
            self._score_capabilities(spec)
        if not scores_online(self.config):
            self.pool.release()
        return prepared

    def _score_capabilities(self, spec: ExpertSpec) -> None:
        """The expert's row of the capability table: what it answers to its own held-out prompts."""
        asked = [prompt for prompt in self.measured if prompt.capability in spec.capabilities]
        if asked:
            row = score_expert(
                self._cache(spec),
                spec.name,
                _expert_digest(expert_path(self.workspace, spec), spec) + str(self.dtype),
                asked,
                self.config.schedule.capability_tokens,
                lambda: self.pool.get(spec),
                self.ctx.checkpoint_point,
            )
            self.ctx.emit(msgspec.structs.replace(row, seq=0, time=0.0))

    def _expert(
        self,
        spec: ExpertSpec,
        examples: Sequence[Example],
        held: frozenset[str],
        student: ChatEncoder,
    ) -> Prepared:
        self.ctx.checkpoint_point(f"preparing {spec.title}")
        path = expert_path(self.workspace, spec)
        streamed = self.streamed if self.streamed and self.streamed.of(spec) else None
        vocabulary = ByteVocabulary(load_teacher_tokenizer(path, spec).backend_tokenizer)
        key = self._key(spec, path, vocabulary, student, examples, held)
        folder = self._cache(spec) / key_digest(key)
        stores = {part: TargetStore(folder / part, key) for part in ("train", "held_out")}
        online = self.config.targets.source == "online"
        wanted = ["held_out"] if online or not examples else ["train", "held_out"]
        ready = [part for part in wanted if stores[part].open() and stores[part].complete]
        judge = self._judge(spec, examples, held, student)
        if ready == wanted and not online and not streamed:
            self._announce(spec, Tally(**stores["held_out"].meta), stores, len(stores["train"]))
            feeds = {spec.name: (CachedSource(stores["train"]), 1.0)}
            probes = load_probes(folder / _PROBES)
            return Prepared(feeds, stores["held_out"], probes, judge)

        teacher = self.pool.get(spec)
        reader = teacher_encoder(teacher)
        text = ReadText()
        if ready != wanted or online:
            text = corpus.read_text(
                *(examples, held, student, reader, spec, self.config, self.ctx.checkpoint_point),
                needs_both=not streamed,
            )
            if streamed:
                text.held_out += streamed.held_out(
                    *(spec, student, reader, self._known), text.tally
                )
            if not text.held_out:
                raise UsageError(
                    f"expert {spec.name}: nothing to evaluate on was found in its streamed text; "
                    f"raise data.held_out (now {self.config.data.held_out}), or give more text"
                )
        projector = self._projector(teacher, reader, student)
        # Before the text: scored text that is complete then has them beside it.
        probes = load_probes(folder / _PROBES) if ready == wanted else None
        if probes is None:
            probes = score_probes(teacher, projector, student, reader, self.ctx.checkpoint_point)
            folder.mkdir(parents=True, exist_ok=True)
            save_probes(folder / _PROBES, probes)
        if ready != wanted:
            self._score(spec, text, {part: stores[part] for part in wanted}, teacher, projector)
        scored = {part: stores[part] for part in wanted}
        tally = text.tally if ready != wanted or online else Tally(**stores["held_out"].meta)
        blocks = len(text.train) if online else len(stores["train"])
        self._announce(spec, tally, scored, blocks)

        def teach() -> tuple[Teacher, Projector]:
            return self.pool.get(spec), projector

        if scores_online(self.config):
            judge = replace(judge, teacher_forward=lambda: (teacher, reader, projector))
        feeds: dict[str, tuple[Source, float]] = {}
        rest = 1.0
        if blocks:
            rest = self.config.data.stream_share if streamed else 0.0
            temperature = self.config.loss.temperature
            source = (
                OnlineSource(text.train, teach, temperature)
                if online
                else CachedSource(stores["train"])
            )
            feeds[spec.name] = source, 1.0 - rest
        for name, source, share in (
            streamed.sources(spec, (student, reader), teach, held) if streamed else ()
        ):
            feeds[name] = source, rest * share
        feeds = {n: f for n, f in feeds.items() if f[1] > 0}
        return Prepared(feeds, stores["held_out"], probes, judge)

    def _projector(self, teacher: Teacher, reader: ChatEncoder, student: ChatEncoder) -> Projector:
        with self.ctx.busy("building the projection tables"):
            tables = load_tables(
                self.workspace.experts_cache_dir,
                reader.vocabulary,
                student.vocabulary,
                teacher.end_token_ids,
                student.end_ids[0],
            )
        return Projector(tables, teacher.device, self.config.targets.min_mass)

    def _judge(
        self,
        spec: ExpertSpec,
        examples: Sequence[Example],
        held: frozenset[str],
        student: ChatEncoder,
    ) -> OnPolicyTeacher:
        """The expert as on-policy rounds need it; nothing is loaded here."""
        prompts: dict[tuple[Message, ...], None] = {}
        if self.config.schedule.on_policy_share > 0:
            talks = [e for e in examples if e.messages and corpus.split_key(e) not in held]
            prompts = {prompt_of(talk): None for talk in talks}
            if not prompts:
                chosen = chosen_prompts(spec, self.config)
                learnt = (prompt for prompt, _ in chosen if not is_reserved(prompt.group))
                prompts = {prompt.messages: None for prompt in learnt}

        def teacher_forward() -> tuple[Teacher, ChatEncoder, Projector]:
            teacher = self.pool.get(spec)
            reader = teacher_encoder(teacher)
            return teacher, reader, self._projector(teacher, reader, student)

        release = (lambda: None) if scores_online(self.config) else self.pool.release
        return OnPolicyTeacher(spec, tuple(prompts), teacher_forward, release)

    def _score(
        self,
        spec: ExpertSpec,
        text: ReadText,
        stores: Mapping[str, TargetStore],
        teacher: Teacher,
        projector: Projector,
    ) -> None:
        """Scores what each store lacks; the held-out text first."""
        parts = {"held_out": text.held_out, "train": text.train}
        parts = {part: blocks for part, blocks in parts.items() if part in stores}
        total = sum(len(b.teacher_ids) for blocks in parts.values() for b in blocks)
        report = _ScoringProgress(spec, total, self.ctx)
        for part, blocks in parts.items():
            corpus.score_into(
                stores[part],
                blocks,
                teacher,
                projector,
                self.config,
                projector.student_size,
                text.tally,
                report,
                own_nats=part == "held_out",
            )
            report.base += sum(len(b.teacher_ids) for b in blocks)
        report.finish()

    def _announce(
        self, spec: ExpertSpec, tally: Tally, stores: Mapping[str, TargetStore], blocks: int
    ) -> None:
        held = len(stores["held_out"])
        self.ctx.emit(tally.scored(list(stores.values())).event(spec.name, blocks, held))

    def _cache(self, spec: ExpertSpec) -> Path:
        return self.workspace.experts_cache_dir / spec.name

    def _key(
        self,
        spec: ExpertSpec,
        path: Path,
        vocabulary: ByteVocabulary,
        student: ChatEncoder,
        examples: Sequence[Example],
        held: frozenset[str],
    ) -> ShardKey:
        targets = self.config.targets
        limits = (self.config.optimizer.max_seq_len, self.config.data.max_teacher_tokens)
        text = f"{corpus.corpus_digest(examples, held)} {limits} {student.tokenizer.chat_template}"
        if self.streamed:
            text += self.streamed.fingerprint(spec)
        return ShardKey(
            corpus=hashlib.sha256(text.encode()).hexdigest(),
            expert=spec.name,
            expert_digest=_expert_digest(path, spec),
            teacher_tokenizer=vocabulary.digest,
            student_tokenizer=student.vocabulary.digest,
            temperature=self.config.loss.temperature,
            top_k=targets.top_k,
            draws=targets.draws,
            epochs=targets.draw_epochs,
            min_mass=targets.min_mass,
            seed=self.config.seed,
            precision=str(self.dtype).removeprefix("torch."),
        )


class _ScoringProgress:
    """Progress of an expert's scoring over both parts of its text; obeys commands meanwhile."""

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


def tokenizer_path(workspace: Workspace, config: RunConfig) -> Path:
    """Where the student's tokenizer lies: an expert's, the user's, or the run's own one."""
    wanted = config.student.tokenizer
    if wanted == "train":
        return workspace.checkpoints_dir / TOKENIZER
    known = load_experts(workspace)
    return expert_path(workspace, known[wanted]) if wanted in known else Path(wanted)


def key_digest(key: ShardKey) -> str:
    """Name of the folder that a key's shards lie in."""
    text = "\n".join(f"{field}={getattr(key, field)}" for field in key.__struct_fields__)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_of(example: Example) -> tuple[Message, ...]:
    """A conversation up to where its last answer begins."""
    messages = example.messages or ()
    last = max((n for n, m in enumerate(messages) if m.role == "assistant"), default=0)
    return messages[:last]


def _texts(example: Example) -> list[str]:
    if example.messages is None:
        return [example.text or ""]
    return [message.content for message in example.messages]


def _expert_digest(path: Path, spec: ExpertSpec) -> str:
    """What tells one state of an expert's files from another, without reading the weights."""
    digest = hashlib.sha256(repr((spec.end_tokens, spec.chat, spec.trust_end)).encode())
    manifest = path / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
    else:
        files = [path] if path.is_file() else sorted(path.glob("*"))
        for file in files:
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def device_and_dtype(
    config: RunConfig, has_bf16: Callable[[], bool]
) -> tuple[torch.device, torch.dtype]:
    """Where a run computes, and the type of its matrix products."""
    wanted = config.device.device
    if wanted == "auto":
        wanted = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    device = torch.device(wanted)
    precision = config.device.precision
    if precision == "auto":
        able = {
            # without emulation: a GPU before Ampere would be slower in bf16 than in fp32
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "mps": lambda: False,
            "cpu": has_bf16,
        }[device.type]()
        precision = "bf16" if able else "fp32"
    return device, torch.bfloat16 if precision == "bf16" else torch.float32
