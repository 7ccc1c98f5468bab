"""Out of memory: which setting saves memory next, and applying the settings to the student."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from engine.config import OptimizerConfig
from engine.distill.train.phases import Decision, Schedule
from engine.distill.train.session import Session

MemoryKind = Literal["micro_batch", "activation_checkpointing", "device"]


@dataclass(frozen=True)
class MemoryLadder:
    """The memory settings of a run, and the next ones to try; the tokens of a step never change.

    global_batch_size: packed sequences per optimizer step, a multiple of micro_batch_size.
    """

    global_batch_size: int
    micro_batch_size: int
    activation_checkpointing: bool
    device: str

    @classmethod
    def configured(cls, config: OptimizerConfig, device: torch.device) -> MemoryLadder:
        """The settings of the config."""
        return cls(
            global_batch_size=config.global_batch_size,
            micro_batch_size=config.micro_batch_size,
            activation_checkpointing=config.activation_checkpointing,
            device=device.type,
        )

    def next(
        self, step: int, memory: int = 0, *, in_step: bool = True, may_move: bool = True
    ) -> Decision | None:
        """The next decision that saves memory, for the steps after `step`; None if none is left.

        Halve the micro-batch (to a divisor of global_batch_size), then recompute activations, then
        move to the CPU.

        Args:
            memory: bytes that the job can use on the device, stored with the decision.
            in_step: whether an optimizer step needs less; in an evaluation only the device matters.
            may_move: whether the student may move to the CPU.
        """
        if in_step and self.micro_batch_size > 1:
            half = self.micro_batch_size // 2
            size = next(n for n in range(half, 0, -1) if self.global_batch_size % n == 0)
            return Decision(step, "micro_batch", size, "out of memory", memory)
        if in_step and not self.activation_checkpointing:
            return Decision(step, "activation_checkpointing", True, "out of memory", memory)
        if may_move and self.device != "cpu":
            return Decision(step, "device", "cpu", "out of memory", memory)
        return None

    def back_to(self, configured: MemoryLadder, step: int) -> list[Decision]:
        """Decisions that restore the configured settings, for the steps after `step`."""
        pairs: tuple[tuple[MemoryKind, int | bool | str, int | bool | str], ...] = (
            ("micro_batch", self.micro_batch_size, configured.micro_batch_size),
            (
                "activation_checkpointing",
                self.activation_checkpointing,
                configured.activation_checkpointing,
            ),
            ("device", self.device, configured.device),
        )
        return [
            Decision(step, kind, value, "more memory")
            for kind, current, value in pairs
            if current != value
        ]

    def after(self, decisions: Iterable[Decision]) -> MemoryLadder:
        """The settings after these decisions; other decisions are ignored."""
        ladder = self
        for decision in decisions:
            if decision.kind == "micro_batch":
                ladder = replace(ladder, micro_batch_size=int(decision.value))
            elif decision.kind == "activation_checkpointing":
                ladder = replace(ladder, activation_checkpointing=bool(decision.value))
            elif decision.kind == "device":
                ladder = replace(ladder, device=str(decision.value))
        return ladder


def describe(decision: Decision) -> str:
    """A memory decision in words: `micro batch is 2`."""
    return f"{decision.kind.replace('_', ' ')} is {decision.value}"


def apply_memory_settings(
    session: Session, schedule: Schedule, config: OptimizerConfig, step: int
) -> int:
    """Apply the settings decided for `step` to the student; returns its micro-batch size."""
    checkpointing = schedule.setting_at(step, "activation_checkpointing")
    if checkpointing is None:
        checkpointing = config.activation_checkpointing
    session.set_activation_checkpointing(bool(checkpointing))
    device = schedule.setting_at(step, "device")
    if device is not None and str(device) != session.device.type:
        session.move(torch.device(str(device)))
    return int(schedule.setting_at(step, "micro_batch") or config.micro_batch_size)
