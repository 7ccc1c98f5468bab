"""Choose the memory settings of a run before it starts: reduce them until the estimated need fits,
and restore them when a resumed run has more memory than before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import torch

from engine.budget import scores_online
from engine.config import RunConfig
from engine.distill.device import free_memory
from engine.distill.jobs.resume import StartingPoint
from engine.distill.jobs.training_run import TrainingRun
from engine.distill.train.memory_ladder import MemoryLadder, describe
from engine.distill.train.phases import Decision
from engine.errors import UsageError
from engine.events import GuardTripped
from engine.memory_plan import settings_that_fit
from engine.run.disk import retry_when_full
from engine.sizing import CUDA_CONTEXT, GIB, MemoryNeed, training_memory

_MORE = 1.1
"""Memory that is larger by this factor than at the last decision is used again."""
_KINDS = ("micro_batch", "activation_checkpointing", "device")


@dataclass(frozen=True)
class MemoryFit:
    """Memory settings that fit.

    Attributes:
        device: the student's.
        decisions: new ones; they are in the journal.
    """

    device: torch.device
    decisions: list[Decision]


def fit_into_memory(run: TrainingRun, start: StartingPoint) -> MemoryFit:
    """Smaller micro-batches, then activation checkpointing, until training fits.

    The device stays: a student that does not fit on a GPU is refused, not trained on the CPU.
    Nothing is allocated: a CPU has no out-of-memory error that could be caught. A resumed run with
    more memory than at the last decision goes back to the configured settings first.

    Raises UsageError with the figures, and the settings that would fit, if nothing fits.
    """
    step = start.step or 0
    configured = MemoryLadder.configured(run.config.optimizer, run.device)
    ladder = configured.after(start.decisions)
    restored = _restored(run, configured, ladder, start)
    ladder = ladder.after(restored)
    reduced: list[Decision] = []
    while _need(run, ladder).total > (free := free_memory(ladder.device)):
        decision = ladder.next(step, free, may_move=False)
        if decision is None:
            raise UsageError(_refusal(run, _need(run, ladder), free, ladder.device))
        ladder = ladder.after([decision])
        reduced.append(decision)
    for decision in (*restored, *reduced):
        retry_when_full(
            run.ctx, lambda decision=decision: run.journal.append(decision), what="the journal"
        )
    for decision in restored:
        run.ctx.log(f"{describe(decision)} again: there is more memory than before")
    for decision in reduced:
        action = f"{describe(decision)} from the start: more would not fit in memory"
        run.ctx.emit(GuardTripped(guard="out_of_memory", action=action))
    return MemoryFit(device=torch.device(ladder.device), decisions=[*restored, *reduced])


def _restored(
    run: TrainingRun, configured: MemoryLadder, ladder: MemoryLadder, start: StartingPoint
) -> list[Decision]:
    """Decisions that go back to the configured settings, where there is more memory than before."""
    taken = [d for d in start.decisions if d.kind in _KINDS]
    if ladder == configured or not taken:
        return []
    moved = ladder.device != configured.device
    last = next(d for d in reversed(taken) if not moved or d.kind == "device")
    free = free_memory(configured.device)
    if last.memory:
        enough = free > _MORE * last.memory
    else:
        # Journals of earlier versions do not have it; they moved a student to the CPU for good.
        smallest = replace(configured, micro_batch_size=1, activation_checkpointing=True)
        enough = moved and _need(run, smallest).total <= free
    return ladder.back_to(configured, start.step or 0) if enough else []


def _need(run: TrainingRun, ladder: MemoryLadder) -> MemoryNeed:
    """Estimated need of an optimizer step; the CUDA context is not part of the free memory."""
    # Experts stay on the run's device when the student moved to the CPU.
    together = scores_online(run.config) and ladder.device == run.device.type
    experts = [spec.parameters for spec in run.experts] if together else []
    need = training_memory(_with_settings(run.config, ladder), _half(run), ladder.device, experts)
    return replace(need, context=0)


def _half(run: TrainingRun) -> bool:
    return run.dtype == torch.bfloat16


def _with_settings(config: RunConfig, ladder: MemoryLadder) -> RunConfig:
    optimizer = msgspec.structs.replace(
        config.optimizer,
        micro_batch_size=ladder.micro_batch_size,
        activation_checkpointing=ladder.activation_checkpointing,
    )
    return msgspec.structs.replace(config, optimizer=optimizer)


def _refusal(run: TrainingRun, need: MemoryNeed, free: int, device: str) -> str:
    kind = "GPU memory" if device == "cuda" else "memory"
    figures = (
        f"training this student needs {need.sentence()} with micro-batch size 1 and activation "
        f"checkpointing, and {free / GIB:.1f} GiB of {kind} are free"
    )
    if run.request.resume:
        remedy = "free memory, or resume on a larger machine"
        if device == "cuda":
            remedy += ", or on the CPU: --set device.device=cpu"
        return f"{figures}: {remedy}"
    # What is free does not include the CUDA context of this process, which the plan counts.
    whole = free + (CUDA_CONTEXT if device == "cuda" else 0)
    settings = settings_that_fit(run.config, run.experts, _half(run), device, whole)
    if settings:
        remedy = "this would fit: " + " ".join(f"--set {setting}" for setting in settings)
    else:
        remedy = "free memory, or choose a smaller student (--preset nano)"
    if device == "cuda":
        remedy += "; or train on the CPU, which is far slower: --set device.device=cpu"
    return f"{figures}; {remedy}"
