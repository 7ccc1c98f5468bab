"""Rollback to the last good checkpoint after several non-finite steps in a row."""

from __future__ import annotations

from pathlib import Path

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.train_state import TrainState
from engine.config import GuardsConfig
from engine.distill.train.journal import RunPlan
from engine.distill.train.phases import Decision
from engine.errors import GladiusError
from engine.events import CheckpointRejected
from engine.run.job import JobContext


def rollback_state(
    store: CheckpointStore, plan: RunPlan, config: GuardsConfig, step: int, ctx: JobContext
) -> TrainState:
    """The state to continue from after the bad steps up to `step + 1`, at a lower learning rate.

    Later checkpoints are moved aside, and the decision is in the journal when this returns. Raises
    GladiusError if there is no checkpoint from before the bad steps.
    """

    def report_rejected(path: Path, reason: str, moved_to: Path | None) -> None:
        moved = "" if moved_to is None else str(moved_to)
        ctx.emit(CheckpointRejected(step=step, path=str(path), reason=reason, moved_to=moved))

    limit = config.max_non_finite
    # A checkpoint from among the bad steps would lead to the same numbers again.
    loaded = store.load_newest(report_rejected, up_to=max(0, step - limit + 1))
    if loaded is None:
        raise GladiusError(
            f"{stopped_text(step, config)} before the first checkpoint; lower optimizer.lr and "
            "start again with --fresh"
        )
    state = loaded[0]
    store.supersede_after(state.step)
    reason = f"{limit} steps were not finite"
    plan.decide([Decision(state.step, "rollback", config.rollback_lr_scale, reason)])
    return state


def stopped_text(step: int, config: GuardsConfig) -> str:
    """The reason why training stopped, for error messages."""
    return f"training stopped at step {step}: {config.max_non_finite} steps in a row not finite"
