"""Reduce memory settings before training starts, until the estimated need fits."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import torch

from engine import hardware
from engine.budget import scores_online
from engine.config import RunConfig
from engine.distill.jobs.training_run import TrainingRun
from engine.distill.train.memory_ladder import MemoryLadder, describe
from engine.distill.train.phases import Decision
from engine.errors import GladiusError
from engine.events import GuardTripped
from engine.run.disk import retry_when_full
from engine.sizing import GIB, training_memory


@dataclass(frozen=True)
class MemoryFit:
    """Memory settings that fit.

    Attributes:
        device: the student's.
        decisions: new ones; they are in the journal.
    """

    device: torch.device
    decisions: list[Decision]


def fit_into_memory(run: TrainingRun, decisions: list[Decision]) -> MemoryFit:
    """Smaller micro-batches, then activation checkpointing, then the CPU, until training fits.

    Nothing is allocated: a CPU has no out-of-memory error that could be caught. Raises GladiusError
    with the numbers if nothing fits.
    """
    ladder = MemoryLadder.configured(run.config.optimizer, run.device).after(decisions)
    online = scores_online(run.config)
    # Experts that stay in memory have half precision: 2 bytes per parameter.
    teachers = sum(2 * spec.parameters for spec in run.experts) if online else 0
    new: list[Decision] = []
    while True:
        need = training_memory(_with_settings(run.config, ladder), run.dtype == torch.bfloat16)
        free = _free_memory(ladder.device)
        if need.total + teachers <= free:
            break
        decision = ladder.next(0)
        if decision is None:
            experts = f", the experts {teachers / GIB:.1f} GiB" if teachers else ""
            kind = "GPU memory" if ladder.device == "cuda" else "memory"
            raise GladiusError(
                f"training this student needs {need.sentence()}{experts}, and {free / GIB:.1f} GiB "
                f"of {kind} are free: close other programs, lower optimizer.max_seq_len, or choose "
                "a smaller student (--preset nano)"
            )
        ladder = ladder.after([decision])
        new.append(decision)
    for decision in new:
        retry_when_full(
            run.ctx, lambda decision=decision: run.journal.append(decision), what="the journal"
        )
        action = f"{describe(decision)} from the start: more would not fit in memory"
        run.ctx.emit(GuardTripped(guard="out_of_memory", action=action))
    return MemoryFit(device=torch.device(ladder.device), decisions=new)


def _with_settings(config: RunConfig, ladder: MemoryLadder) -> RunConfig:
    optimizer = msgspec.structs.replace(
        config.optimizer,
        micro_batch_size=ladder.micro_batch_size,
        activation_checkpointing=ladder.activation_checkpointing,
    )
    return msgspec.structs.replace(config, optimizer=optimizer)


def _free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return hardware.available_ram()
