"""A small training job in this process: a root with a tiny expert, a link that keeps the events,
and trainers of which a test can replace one part."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from engine.budget import scores_online
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, load_config, to_json
from engine.distill.jobs import train as worker
from engine.distill.jobs.expert_preparation import PreparedExpert
from engine.distill.jobs.preparation import PreparedRun, prepare_run
from engine.distill.jobs.setup import RunSetup
from engine.distill.student import build_student
from engine.distill.teacher.pool import TeacherPool
from engine.distill.train.batches import TrainingData
from engine.distill.train.evaluator import EvaluationData
from engine.distill.train.journal import Journal
from engine.distill.train.on_policy import OnPolicyRounds
from engine.distill.train.phases import Schedule, plan_phases
from engine.distill.train.session import Session
from engine.distill.train.trainer import Trainer, TrainerParts
from engine.events import AnyCommand, Event, JobRequest, StepDone
from engine.experts.registry import ExpertSpec, load_experts
from engine.run.job import JobContext
from engine.workspace import Workspace
from tests.support.tiny_expert import make_expert

CPU = torch.device("cpu")
SMALL = {
    "data.generate": "false",
    "device.precision": "fp32",
    "device.threads": 1,
    "student.hidden_size": 32,
    "student.intermediate_size": 48,
    "student.num_hidden_layers": 2,
    "student.num_attention_heads": 2,
    "student.num_key_value_heads": 1,
    "student.vocab_size": 320,
    "student.max_position_embeddings": 128,
    "loss.alpha": 0.5,
    "loss.temperature": 2.0,
    "optimizer.max_seq_len": 128,
    "optimizer.global_batch_size": 4,
    "optimizer.micro_batch_size": 4,
    "optimizer.lr": 0.002,
    "schedule.max_steps": 12,
    "schedule.eval_interval": 100,
    "schedule.sample_tokens": 4,
    "schedule.capability_prompts": 0,
}
_WORDS = ("river", "town", "bank", "old", "snow", "stone", "bridge", "water", "mill", "field")

T = TypeVar("T", bound=Event)


class KeepingLink:
    """Keeps the events; `react(event)` may answer with commands, which are polled afterwards."""

    def __init__(self, react: Callable[[Event], list[AnyCommand]] = lambda event: []) -> None:
        self.events: list[Event] = []
        self.waits = 0
        self._react = react
        self._commands: list[AnyCommand] = []
        self._watchers: list[Callable[[Event], None]] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self._commands += self._react(event)
        for watch in self._watchers:
            watch(event)

    def on_event(self, watch: Callable[[Event], None]) -> None:
        """Call `watch` with every later event."""
        self._watchers.append(watch)

    def ask(self, command: AnyCommand) -> None:
        self._commands.append(command)

    def poll(self) -> list[AnyCommand]:
        commands, self._commands = self._commands, []
        return commands

    def wait(self, timeout: float) -> list[AnyCommand]:
        self.waits += 1
        assert self.waits < 1000, "the pause does not end"
        return self.poll()

    def heartbeat(self, activity: str = "") -> None:
        pass

    def commit(self) -> None:
        pass

    @contextmanager
    def busy(self, activity: str, at_most: float = 0.0) -> Iterator[None]:
        yield

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    def steps(self) -> list[int]:
        return [event.step for event in self.of(StepDone)]


def make_root(folder: Path) -> Workspace:
    """A root with the expert `tiny` and 40 texts in text.jsonl."""
    make_expert(folder / "tiny")
    (folder / "gladius.toml").write_text(
        '[experts.tiny]\ntitle = "Tiny"\nrepo = "./tiny"\nend_tokens = ["<|im_end|>"]\n'
    )
    rng = random.Random(0)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for n in range(40):
            words = " ".join(rng.choice(_WORDS) for _ in range(20))
            example: dict[str, Any] = {"text": words}
            if n % 3 == 0:
                question = {"role": "user", "content": "Tell of the river."}
                example = {"messages": [question, {"role": "assistant", "content": words}]}
            file.write(json.dumps(example) + "\n")
    workspace = Workspace.find(folder)
    workspace.create()
    return workspace


def make_config(
    workspace: Workspace, experts: Sequence[str] = ("tiny",), **fields: object
) -> RunConfig:
    """A small run's config; fields as section__field=value."""
    values = {**SMALL, **{name.replace("__", "."): value for name, value in fields.items()}}
    return load_config(
        workspace,
        preset="nano",
        experts=experts,
        data=[str(workspace.root / "text.jsonl")],
        overrides=[f"{name}={value}" for name, value in values.items()],
    )


def prepare(workspace: Workspace, config: RunConfig) -> tuple[Any, dict[str, PreparedExpert]]:
    """The student's tokenizer and the prepared experts."""
    prepared = prepared_run(workspace, config)
    return prepared.tokenizer, prepared.experts


def prepared_run(
    workspace: Workspace, config: RunConfig, link: KeepingLink | None = None
) -> PreparedRun:
    """What a run trains and is evaluated on; `link` receives the events."""
    ctx = JobContext(link or KeepingLink())
    return prepare_run(
        RunSetup(
            workspace=workspace,
            config=config,
            experts=experts_of(workspace, config),
            ctx=ctx,
            pool=TeacherPool(workspace, ctx, CPU, torch.float32, keep_all=True),
            dtype=torch.float32,
        )
    )


def experts_of(workspace: Workspace, config: RunConfig) -> list[ExpertSpec]:
    """The run's experts, in order."""
    known = load_experts(workspace)
    return [known[name] for name in config.experts.names]


def on_policy_rounds(workspace: Workspace, config: RunConfig) -> OnPolicyRounds:
    """Writes the on-policy rounds of a run."""
    prepared = prepared_run(workspace, config)
    return OnPolicyRounds(
        config,
        prepared.tokenizer,
        {name: expert.on_policy for name, expert in prepared.experts.items()},
        online=scores_online(config),
        dtype=torch.float32,
        heartbeat=lambda activity: None,
    )


def make_trainer(
    workspace: Workspace, config: RunConfig, link: KeepingLink, checkpoints: Path
) -> Trainer:
    """A trainer at step 0, with checkpoints and journal in a folder of its own."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    prepared = prepared_run(workspace, config)
    rounds = on_policy_rounds(workspace, config) if config.schedule.on_policy_share else None
    model = build_student(config.student, prepared.tokenizer, config.seed)
    return Trainer(
        TrainerParts(
            config=config,
            ctx=JobContext(link),
            session=Session(model, config.optimizer, config.guards, "tokenizer"),
            data=TrainingData(
                {name: expert.sources for name, expert in prepared.experts.items()}, rounds
            ),
            evaluation=EvaluationData(
                held_out={name: expert.held_out for name, expert in prepared.experts.items()},
                tokenizer=prepared.tokenizer,
                sample_prompts=("Tell of the river.",),
                capability_prompts=prepared.capability_prompts,
            ),
            schedule=Schedule(config, plan_phases(config, experts_of(workspace, config))),
            journal=Journal(checkpoints / "journal.jsonl"),
            checkpoints=CheckpointStore(checkpoints, config.checkpoint.keep),
            dtype=torch.float32,
        )
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.session.model.named_parameters()}


def train(
    workspace: Workspace,
    config: RunConfig,
    link: KeepingLink,
    *,
    resume: bool = False,
    fresh: bool = False,
    attempt: int = 1,
) -> int:
    """The whole job, as the worker process does it."""
    request = JobRequest(
        job="train",
        root=str(workspace.root),
        run_id="run",
        attempt=attempt,
        resume=resume,
        fresh=fresh,
        config=to_json(config),
    )
    return worker.main(JobContext(link), request)
