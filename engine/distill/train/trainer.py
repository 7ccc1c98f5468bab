"""The training loop: optimizer steps, and what happens between them.

A step is a pure function of the config, the seed, the step number, the decisions in the journal,
and the state that a checkpoint stores.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.train_state import TrainState
from engine.config import RunConfig
from engine.distill.data.streams import StreamReadError
from engine.distill.device import usable_memory
from engine.distill.train.batches import Row, StepBatches, StepData, TrainingData, batch_of
from engine.distill.train.checkpoint_policy import CheckpointPolicy
from engine.distill.train.decisions import (
    clock_decisions,
    due_decisions,
    finish_decision,
    on_policy_decision,
    run_converged,
)
from engine.distill.train.evaluator import EvaluationData, Evaluator
from engine.distill.train.forward import hidden_states
from engine.distill.train.guards import Verdict
from engine.distill.train.journal import Journal, RunPlan
from engine.distill.train.layer_stats import LayerMonitor
from engine.distill.train.losses import distillation_loss
from engine.distill.train.memory_ladder import (
    MemoryLadder,
    apply_memory_settings,
    describe,
)
from engine.distill.train.pace import Pace
from engine.distill.train.phases import Phase, Schedule
from engine.distill.train.rollback import rollback_state, stopped_text
from engine.distill.train.session import Session
from engine.errors import GladiusError
from engine.events import GuardTripped, PhaseStarted, StepDone
from engine.out_of_memory import is_out_of_memory, release
from engine.run.job import JobContext, JobStopped

_SLOW_MICRO_BATCH = 5.0
"""Seconds; while a longer micro-batch runs, a thread sends heartbeats."""
_MAX_MICRO_BATCH = 1800.0
"""Seconds after which a micro-batch counts as hung."""


@dataclass(frozen=True)
class TrainerParts:
    """The parts of a trainer.

    Attributes:
        schedule: with the decisions that the journal has.
        dtype: of the matrix products.
        training_seconds: unpaused training time so far.
    """

    config: RunConfig
    ctx: JobContext
    session: Session
    data: TrainingData
    evaluation: EvaluationData
    schedule: Schedule
    journal: Journal
    checkpoints: CheckpointStore
    dtype: torch.dtype
    training_seconds: float = 0.0


@dataclass(frozen=True)
class StepResult:
    """A step's means over the scored positions, and its cost.

    Attributes:
        kl: of the divergence that is trained (`loss.divergence`), in nats.
        teacher_weight: mean weight of the soft targets.
        seconds: until the event is sent.
    """

    loss: float
    kl: float
    ce: float
    teacher_weight: float
    grad_norm: float
    lr: float
    tokens: int
    seconds: float
    skipped: bool


class Trainer:
    """Trains until the schedule ends or a stop is requested."""

    def __init__(self, parts: TrainerParts) -> None:
        self.config = parts.config
        self.ctx = parts.ctx
        self.session = parts.session
        self.dtype = parts.dtype
        self.plan = RunPlan(parts.schedule, parts.journal, parts.ctx)
        self.pace = Pace(parts.ctx, parts.training_seconds)
        self.batches = StepBatches(parts.config, parts.data, parts.session, parts.ctx)
        self.checkpoints = CheckpointPolicy(
            parts.checkpoints, parts.config, parts.session, self.pace, parts.ctx
        )
        self.evaluator = Evaluator(
            parts.evaluation,
            config=parts.config,
            session=parts.session,
            plan=self.plan,
            checkpoints=self.checkpoints,
            dtype=parts.dtype,
            ctx=parts.ctx,
        )
        self._layers = LayerMonitor(
            parts.session.model, parts.config.schedule.log_interval, parts.ctx
        )
        self._memory = MemoryLadder.configured(parts.config.optimizer, parts.session.device)
        self._micro_batch_size = parts.config.optimizer.micro_batch_size
        self._micro_batch_seconds = math.inf  # unknown before the first step
        self._phase: Phase | None = None
        self._in_step = False
        self.ctx.attach_trainer(
            save=lambda: self.checkpoints.save("asked"), step=lambda: self.session.progress.step
        )

    @property
    def schedule(self) -> Schedule:
        """The current schedule."""
        return self.plan.schedule

    def restore(self, state: TrainState) -> None:
        """Continue from a checkpoint."""
        rollbacks = sum(d.kind == "rollback" for d in self.schedule.decisions)
        self.session.restore(state, rollbacks)
        self.checkpoints.restored(state.step)
        self.batches.reset()
        self._layers.restored()

    def run(self) -> Literal["completed", "stopped"]:
        """Train to the end of the schedule ("completed"), or until a stop ("stopped").

        A stop saves a checkpoint. Raises GladiusError if training can't continue (bad numbers, no
        memory, no disk space); the last checkpoint stays valid.
        """
        while True:
            try:
                self._in_step = False
                self.ctx.checkpoint_point("training")
                self.ctx.questions.answer()
                step = self.session.progress.step + 1
                # Before the evaluation: it runs on the device that was decided.
                self._micro_batch_size = apply_memory_settings(
                    self.session, self.schedule, self.config.optimizer, step
                )
                self.between_steps()
                if self.schedule.phase_at(step).kind == "save":
                    return "completed"
                self._report_phase(step)
                self._in_step = True
                self.train_step(step)
                continue
            except JobStopped:
                self.checkpoints.save("stop")
                return "stopped"
            except StreamReadError:
                self.checkpoints.save("stop")
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                failure = error
            # Outside of the except block, in which Python holds what the failed pass allocated.
            self._save_memory(failure)

    # One step

    def train_step(self, step: int) -> None:
        """One optimizer step: batch, forward, loss, backward, guard, optimizer, event.

        Raises JobStopped on a stop: nothing has changed then, and the step is repeated after
        the resume.
        """
        began = time.monotonic()
        session = self.session
        session.optimizer.zero_grad(set_to_none=True)
        data = self.batches.next(self.schedule, step)
        micro_batches = list(data.micro_batches(self._micro_batch_size))
        parts: list[Tensor] = []  # of each micro-batch: loss, divergence, CE, teacher's weight
        for rows in micro_batches:
            self.ctx.checkpoint_point("training")
            with self._heartbeats():
                parts.append(self._forward_backward(rows, data.scored_positions))
        self._micro_batch_seconds = (time.monotonic() - began) / len(micro_batches)
        loss, divergence, ce, teacher_weight = _summed(parts)

        clip = self.config.optimizer.grad_clip
        grad_norm = float(torch.nn.utils.clip_grad_norm_(session.model.parameters(), clip))
        verdict = session.guard.judge(loss, grad_norm)
        if verdict in ("rollback", "stop"):
            self._roll_back(verdict)
            return
        lr = self.schedule.lr_at(step)
        if verdict == "ok":
            for group in session.optimizer.param_groups:
                group["lr"] = lr
            session.optimizer.step()
        else:
            self._report_skipped(step, verdict, grad_norm)
        session.optimizer.zero_grad(set_to_none=True)

        self._advance(step, data)
        result = StepResult(
            loss=loss,
            kl=divergence / data.scored_positions,
            ce=ce / data.scored_positions,
            teacher_weight=teacher_weight / data.scored_positions,
            grad_norm=grad_norm,
            lr=lr,
            tokens=data.tokens,
            seconds=time.monotonic() - began,
            skipped=verdict != "ok",
        )
        self._report_step(step, result)
        self._layers.step_done(step)

    def _forward_backward(self, rows: list[Row], denominator: int) -> Tensor:
        """Add the gradient of one micro-batch; (4,) sums of loss, divergence, CE and weight."""
        batch = batch_of(rows, self.session.device)
        targets = self.batches.soft_targets(rows)
        hidden = hidden_states(
            self.session.model,
            batch.input_ids,
            batch.attention(self.dtype),
            batch.position_ids,
            self.dtype,
        )  # (B, L, H)
        parts = distillation_loss(
            hidden.flatten(0, 1)[batch.gather],  # (N, H)
            self.session.output_matrix,
            batch.labels,
            targets,
            alpha=self.config.loss.alpha,
            temperature=self.config.loss.temperature,
            denominator=float(denominator),
            divergence=self.config.loss.divergence,
            chunk_size=self.config.loss.chunk_size,
            compute_dtype=self.dtype,
        )
        parts.loss.backward()
        sums = [parts.loss.detach(), parts.divergence, parts.ce, parts.teacher_weight]
        return torch.stack(sums)

    def _heartbeats(self) -> AbstractContextManager[None]:
        """Heartbeats from a thread, if micro-batches take long."""
        if self._micro_batch_seconds < _SLOW_MICRO_BATCH:
            return nullcontext()
        return self.ctx.busy("training", at_most=_MAX_MICRO_BATCH)

    def _advance(self, step: int, data: StepData) -> None:
        progress = self.session.progress
        progress.step = step
        progress.cursors = data.cursors
        progress.tokens_seen += data.tokens
        self.pace.step_done()

    # Between steps

    def between_steps(self) -> None:
        """Do what is due after the last completed step: decisions, evaluation, checkpoint.

        Each is done once. This runs before the next step, so that a run that was stopped in the
        middle of it does the rest after the resume.
        """
        progress = self.session.progress
        step = progress.step
        if step == 0:
            if not progress.evaluated:
                self.evaluator.run()  # of the random student
            return
        phase = self.schedule.phase_at(step)
        self._decide_end_and_on_policy(step)
        last = self.schedule.bounds(phase)[1]
        ends_phase = last is not None and step >= last
        interval = self.config.schedule.eval_interval
        if not progress.evaluated and (ends_phase or step % interval == 0):
            self.evaluator.run()
        if phase.kind == "unified" and run_converged(self.schedule, progress.evaluations):
            reason = "held-out loss stopped falling"
            self.plan.decide(finish_decision(self.schedule, step, reason))
        decay = self.schedule.decay
        self.plan.decide(due_decisions(self.schedule, step))
        self.checkpoints.save_if_due(
            ends_phase=ends_phase,
            ends_run=self.schedule.phase_at(step + 1).kind == "save",
            before_decay=decay is not None and decay[0] == step + 1,
        )

    def _decide_end_and_on_policy(self, step: int) -> None:
        """Decisions by the clock, by `stop --finish`, and about on-policy training."""
        hours = self.config.schedule.hours
        if hours is not None:
            self.plan.decide(clock_decisions(self.schedule, step, **self.pace.clock(hours)))
        if self.ctx.finish_requested:
            self.plan.decide(finish_decision(self.schedule, step))
        progress = self.pace.forecast(self.schedule, step).run_progress
        self.plan.decide(on_policy_decision(self.schedule, step, progress))

    def _roll_back(self, verdict: Verdict) -> None:
        """Return to the last good checkpoint with a lower learning rate, or end the run."""
        step, guards = self.session.progress.step, self.config.guards
        if verdict == "stop":
            raise GladiusError(
                f"{stopped_text(step, guards)}, and lower learning rates did not help; the last "
                "checkpoint is good: start a new run (--fresh) with a lower optimizer.lr or "
                "device.precision=fp32"
            )
        state = rollback_state(self.checkpoints.store, self.plan, guards, step, self.ctx)
        self.restore(state)
        self._phase = None
        scale = guards.rollback_lr_scale
        action = f"back to the checkpoint of step {state.step}, learning rate x {scale:g}"
        self.ctx.emit(GuardTripped(step=state.step, guard="rollback", action=action, value=scale))

    def _save_memory(self, error: Exception) -> None:
        """Change the next setting that saves memory; the step is then taken again."""
        self.session.optimizer.zero_grad(set_to_none=True)
        release(error)
        step, device = self.session.progress.step, self.session.device
        decision = self._memory.after(self.schedule.decisions).next(
            step, usable_memory(device), in_step=self._in_step
        )
        if decision is None:
            where = "" if self._in_step else " in an evaluation"
            raise GladiusError(
                f"out of memory{where}, with every setting that saves memory, on the "
                f"{device.type.upper()}; use a smaller optimizer.max_seq_len or a smaller student"
            ) from error
        self.plan.decide([decision])
        action = describe(decision).replace(" is ", " is now ", 1)
        self.ctx.emit(GuardTripped(step=step, guard="out_of_memory", action=action))

    # Events

    def _report_phase(self, step: int) -> None:
        """PhaseStarted, if this step begins a phase."""
        phase = self.schedule.phase_at(step)
        if phase == self._phase:
            return
        self._phase = phase
        self.ctx.emit(_phase_started(self.schedule, phase, step))

    def _report_skipped(
        self, step: int, verdict: Literal["non_finite", "spike"], grad_norm: float
    ) -> None:
        reason = "loss or gradient is not finite" if verdict == "non_finite" else "gradient spike"
        action = f"{reason}: step {step} skipped, no weight changed"
        value = _finite(grad_norm)
        self.ctx.emit(GuardTripped(step=step, guard=verdict, action=action, value=value))

    def _report_step(self, step: int, result: StepResult) -> None:
        phase = self.schedule.phase_at(step)
        forecast = self.pace.forecast(self.schedule, step)
        self.ctx.emit(
            StepDone(
                step=step,
                phase=phase.index,
                expert=phase.expert,
                loss=_finite(result.loss),
                kl=_finite(result.kl),
                ce=_finite(result.ce),
                lr=result.lr,
                grad_norm=_finite(result.grad_norm),
                tokens=result.tokens,
                tokens_seen=self.session.progress.tokens_seen,
                tokens_per_sec=result.tokens / max(result.seconds, 1e-9),
                step_seconds=result.seconds,
                mean_weight=result.teacher_weight,
                phase_progress=forecast.phase_progress,
                run_progress=forecast.run_progress,
                phase_eta=forecast.phase_eta,
                run_eta=forecast.run_eta,
                training_seconds=self.pace.training_seconds,
                skipped=result.skipped,
            )
        )


def _phase_started(schedule: Schedule, phase: Phase, step: int) -> PhaseStarted:
    first, last = schedule.bounds(phase)
    return PhaseStarted(
        step=step - 1,
        phase=phase.index,
        phases=schedule.phases[-1].index,
        name=phase.name,
        expert=phase.expert,
        first_step=first or 0,
        last_step=last,
    )


def _summed(parts: list[Tensor]) -> list[float]:
    """The sums over all micro-batches, in float64, with one copy to the host."""
    rows = torch.stack(parts).cpu().double()
    total = torch.zeros(4, dtype=torch.float64)
    for row in rows:
        total += row
    return total.tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
