"""Owns the answers to bad numbers and to a full memory: what to do next, not the doing.

Nothing here touches a model, a clock or a device; the trainer asks after each gradient and acts.
"""

from __future__ import annotations

import errno
import math
import statistics
from dataclasses import dataclass, replace
from typing import Any, Literal

from engine.config import GuardsConfig
from engine.distill.train.phases import Decision

Verdict = Literal["ok", "non_finite", "spike", "rollback", "stop"]


class GradGuard:
    """Judges each step's loss and gradient norm before the optimizer may use them.

    Only "ok" allows the update. "non_finite" and "spike" skip it. After `max_non_finite` steps in
    a row that are not finite: "rollback", or "stop" once `rollbacks` (the journal's count, since
    a rollback restores an older state of this guard) has reached `max_rollbacks`.

    A spike is a gradient norm over `spike_factor` times the median of the last `spike_window`
    accepted ones; no spike is called before a quarter of them is known. After `max_spikes` in a row
    further ones are accepted: it is not a batch that is odd then but the place where the weights
    stand, and only a step (clipped) leads away from it. Spikes do not enter the median, but a
    quarter of a window of them in a row is the new normal: the median begins anew with them.
    """

    def __init__(
        self, config: GuardsConfig, rollbacks: int = 0, state: dict[str, Any] | None = None
    ) -> None:
        self.config = config
        self.rollbacks = rollbacks
        state = state or {}
        self.skipped_non_finite: int = state.get("skipped_non_finite", 0)
        self.skipped_spikes: int = state.get("skipped_spikes", 0)
        self._norms: list[float] = list(state.get("norms", ()))
        self._spikes: list[float] = list(state.get("spikes", ()))
        self._non_finite_run: int = state.get("non_finite_run", 0)

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON-able); `state=` of a new guard goes on exactly from it."""
        return {
            "norms": list(self._norms),
            "spikes": list(self._spikes),
            "non_finite_run": self._non_finite_run,
            "skipped_non_finite": self.skipped_non_finite,
            "skipped_spikes": self.skipped_spikes,
        }

    @property
    def median(self) -> float | None:
        """Median of the accepted gradient norms; None before a quarter of the window is known."""
        return statistics.median(self._norms) if len(self._norms) >= self._quarter else None

    @property
    def _quarter(self) -> int:
        return max(1, self.config.spike_window // 4)

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """The verdict on a step, with its loss and the norm of its whole gradient unclipped."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped_non_finite += 1
            self._non_finite_run += 1
            if self._non_finite_run < self.config.max_non_finite:
                return "non_finite"
            return "rollback" if self.rollbacks < self.config.max_rollbacks else "stop"
        self._non_finite_run = 0
        median = self.median
        if median is not None and grad_norm > self.config.spike_factor * median:
            self._spikes.append(grad_norm)
            if len(self._spikes) >= self._quarter:
                self._norms, self._spikes = self._spikes, []
            elif len(self._spikes) <= self.config.max_spikes:
                self.skipped_spikes += 1
                return "spike"
        else:
            self._norms = [*self._norms, grad_norm][-self.config.spike_window :]
            self._spikes = []
        return "ok"


@dataclass(frozen=True)
class OomLadder:
    """Where a run stands on the way down when memory runs out; the tokens of a step never change.

    global_batch_size: packed rows of an optimizer step, a multiple of micro_batch_size.
    """

    global_batch_size: int
    micro_batch_size: int
    activation_checkpointing: bool
    device: str

    def next(self, step: int) -> Decision | None:
        """The next rung, to hold for the steps after `step`; None when there is none left.

        Half the micro-batch (the largest divisor of global_batch_size up to that), then activation checkpointing, then the CPU.
        """
        if self.micro_batch_size > 1:
            half = self.micro_batch_size // 2
            size = next(n for n in range(half, 0, -1) if self.global_batch_size % n == 0)
            return Decision(step, "micro_batch", size, "out of memory")
        if not self.activation_checkpointing:
            return Decision(step, "activation_checkpointing", True, "out of memory")
        if self.device != "cpu":
            return Decision(step, "device", "cpu", "out of memory")
        return None

    def after(self, decision: Decision) -> OomLadder:
        """Where the run stands once a decision is taken (one that is no rung changes nothing)."""
        if decision.kind == "micro_batch":
            return replace(self, micro_batch_size=int(decision.value))
        if decision.kind == "activation_checkpointing":
            return replace(self, activation_checkpointing=bool(decision.value))
        if decision.kind == "device":
            return replace(self, device=str(decision.value))
        return self


_OUT_OF_MEMORY_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS, XPU allocators and driver errors
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the machine is exhausted."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch.OutOfMemoryError by name: nothing else here needs torch.
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(t in text for t in _OUT_OF_MEMORY_TEXTS)
