"""Checks each step's loss and gradient norm before the optimizer may use the gradient."""

from __future__ import annotations

import math
import statistics
from typing import Any, Literal

from engine.config import GuardsConfig

Verdict = Literal["ok", "non_finite", "spike", "rollback", "stop"]


class GradGuard:
    """Decides whether a step updates the weights, is skipped, or causes a rollback.

    Only "ok" allows the update; "non_finite" and "spike" skip it. After `max_non_finite` non-finite
    steps in a row the verdict is "rollback", or "stop" once there were `max_rollbacks` of them.
    (`rollbacks` comes from the journal, because a rollback restores an older state of this guard.)

    A spike is a gradient norm above `spike_factor` times the median of the last `spike_window`
    accepted norms; spikes are detected once a quarter of the window is known. After `max_spikes` in
    a row further ones are accepted: then it is not the batch that is unusual but the position of
    the weights, and only a (clipped) step leads away from it. Spikes do not enter the median, but a
    quarter of a window of consecutive spikes replaces it.
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
        self._non_finite_in_a_row: int = state.get("non_finite_run", 0)

    @property
    def state(self) -> dict[str, Any]:
        """JSON values for the checkpoint; a guard made with them continues exactly."""
        return {
            "norms": list(self._norms),
            "spikes": list(self._spikes),
            "non_finite_run": self._non_finite_in_a_row,
            "skipped_non_finite": self.skipped_non_finite,
            "skipped_spikes": self.skipped_spikes,
        }

    @property
    def median(self) -> float | None:
        """Median of the accepted gradient norms; None until a quarter of the window is known."""
        return statistics.median(self._norms) if len(self._norms) >= self._quarter else None

    @property
    def _quarter(self) -> int:
        return max(1, self.config.spike_window // 4)

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """The verdict on a step, from its loss and the norm of its unclipped gradient."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped_non_finite += 1
            self._non_finite_in_a_row += 1
            if self._non_finite_in_a_row < self.config.max_non_finite:
                return "non_finite"
            return "rollback" if self.rollbacks < self.config.max_rollbacks else "stop"
        self._non_finite_in_a_row = 0
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
