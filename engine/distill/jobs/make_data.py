"""The data job: experts write answers to the prompts of a config, exactly as in a training run with
the same config.
"""

from __future__ import annotations

from functools import partial

import msgspec
import torch

from engine import hardware
from engine.config import RunConfig, digest, from_json
from engine.distill.data.conversations import chosen_prompts, expert_commit, write_answers
from engine.distill.device import device_and_dtype
from engine.distill.teacher.pool import TeacherPool
from engine.errors import MissingError
from engine.events import JobRequest
from engine.experts.registry import ExpertSpec, expert_path, load_experts
from engine.experts.verify import is_ready
from engine.run.disk import retry_when_full
from engine.run.job import JobContext, JobStopped, run_started
from engine.workspace import Workspace


def main(ctx: JobContext, request: JobRequest) -> int:
    """Let the experts of `request.config` (a RunConfig) write; returns the worker's exit code.

    Continues where an earlier call stopped. Emits AnswersJudged for each expert.
    """
    config = from_json(request.config)
    workspace = Workspace.find(request.root)
    workspace.create()
    experts = _ready(workspace, config)
    device, dtype = device_and_dtype(config, hardware.has_bf16)
    torch.set_num_threads(config.device.threads or hardware.physical_cores())
    ctx.emit(
        run_started(
            request,
            config=msgspec.to_builtins(config),
            config_digest=digest(config),
            preset=config.preset,
            device=device.type,
            precision="bf16" if dtype == torch.bfloat16 else "fp32",
        )
    )
    pool = TeacherPool(workspace, ctx, device, dtype, keep_all=False)
    try:
        for spec in experts:
            make = partial(_make, workspace, config, spec, pool, ctx)
            retry_when_full(ctx, make, what="the answers")
    except JobStopped:
        return ctx.ended("stopped", "stopped; run the same command again to continue")
    return ctx.ended("completed")


def _ready(workspace: Workspace, config: RunConfig) -> list[ExpertSpec]:
    known = load_experts(workspace)
    specs = [known[name] for name in config.experts.names]
    missing = [s.name for s in specs if not is_ready(workspace, s)]
    if missing:
        raise MissingError(
            f"not ready: {', '.join(missing)}; run: gladius_train download {' '.join(missing)}"
        )
    return specs


def _make(
    workspace: Workspace,
    config: RunConfig,
    spec: ExpertSpec,
    pool: TeacherPool,
    ctx: JobContext,
) -> None:
    with ctx.busy("choosing prompts"):
        chosen = chosen_prompts(spec, config)
    write_answers(
        pool.get(spec),
        chosen,
        workspace.experts_cache_dir,
        config.data,
        config.seed,
        emit=ctx.emit,
        heartbeat=ctx.checkpoint_point,
        commit=expert_commit(expert_path(workspace, spec), spec),
    )
