"""Shared context of the stages of a training job: request, config, experts, folders, device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine import hardware
from engine.checkpoint.layout import JOURNAL
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, from_json
from engine.distill.device import device_and_dtype
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Decision, Phase, Schedule, plan_phases
from engine.errors import MissingError
from engine.events import JobRequest
from engine.experts.registry import ExpertSpec, load_experts
from engine.experts.verify import is_ready
from engine.run.job import JobContext
from engine.workspace import Workspace


@dataclass(frozen=True)
class TrainingRun:
    """One attempt at a training run.

    Attributes:
        device: of the config; experts stay on it when the student has to move to the CPU.
        dtype: of the matrix products.
    """

    ctx: JobContext
    request: JobRequest
    workspace: Workspace
    config: RunConfig
    experts: tuple[ExpertSpec, ...]
    phases: tuple[Phase, ...]
    journal: Journal
    checkpoints: CheckpointStore
    device: torch.device
    dtype: torch.dtype

    def schedule(self, decisions: list[Decision]) -> Schedule:
        """The schedule with these decisions."""
        return Schedule(self.config, self.phases, decisions)


def open_run(ctx: JobContext, request: JobRequest) -> TrainingRun:
    """The run that was requested; nothing is read or written yet.

    Raises MissingError if an expert is not ready.
    """
    workspace = Workspace.find(request.root)
    config = from_json(request.config)
    experts = _ready_experts(workspace, config, ctx)
    device, dtype = device_and_dtype(config, hardware.has_bf16)
    return TrainingRun(
        ctx=ctx,
        request=request,
        workspace=workspace,
        config=config,
        experts=experts,
        phases=plan_phases(config, experts),
        journal=Journal(workspace.checkpoints_dir / JOURNAL),
        checkpoints=CheckpointStore(
            workspace.checkpoints_dir,
            config.checkpoint.keep,
            config.checkpoint.keep_best,
            lambda: ctx.heartbeat("reading or writing a checkpoint"),
        ),
        device=device,
        dtype=dtype,
    )


def _ready_experts(
    workspace: Workspace, config: RunConfig, ctx: JobContext
) -> tuple[ExpertSpec, ...]:
    known = load_experts(workspace)
    specs = tuple(known[name] for name in config.experts.names)
    heartbeat = lambda: ctx.heartbeat("verifying the experts")  # noqa: E731
    missing = [s.name for s in specs if not is_ready(workspace, s, heartbeat)]
    if missing:
        raise MissingError(
            f"not ready: {', '.join(missing)}; run: gladius_train download {' '.join(missing)}"
        )
    return specs
