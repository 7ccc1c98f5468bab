"""Owns the loop: rows in, optimizer steps out, with the decisions, guards, checkpoints and
evaluations around them. What a step trains on is `feeds`'; what it aims at, `losses`'.

A step is a pure function of (config, seed, step, decisions) and the state that a checkpoint holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.checkpoint.errors import CheckpointError
from engine.checkpoint.store import CheckpointStore, SavedInfo
from engine.checkpoint.train_state import TrainState
from engine.config import RunConfig
from engine.distill.data.packing import Batch, Cursor, Mixer, PackedRow, WindowedSource, make_batch
from engine.distill.data.sources import Source
from engine.distill.data.streams import StreamReadError
from engine.distill.teacher.soft_targets import ChainedTargets, SoftSource
from engine.distill.teacher.targets import EncodedBlock, TargetStore
from engine.distill.train.capabilities import score_student
from engine.distill.train.evaluation import draw_sample, evaluate, hidden_states
from engine.distill.train.guards import OomLadder, is_out_of_memory
from engine.distill.train.journal import Journal
from engine.distill.train.lens import Lens
from engine.distill.train.losses import distillation_loss
from engine.distill.train.on_policy import PASSES, OnPolicyRound, OnPolicyRounds, OnPolicySource
from engine.distill.train.pace import Pace
from engine.distill.train.phases import (
    Decision,
    Phase,
    Schedule,
    clock_decisions,
    converged,
    due_decisions,
    finish_decision,
    mix_decision,
    on_policy_decision,
)
from engine.distill.train.session import Session
from engine.errors import GladiusError
from engine.events import (
    CapabilitiesScored,
    CheckpointRejected,
    CheckpointSaved,
    EvalDone,
    GuardTripped,
    LogLine,
    PhaseStarted,
    SampleDrawn,
    StepDone,
)
from engine.prompts.prompt import Prompt
from engine.run.job import JobContext, JobStopped

_LONG_MICRO_BATCH = 5.0
"""Seconds from which on it beats from a thread."""
_LONGEST_MICRO_BATCH = 1800.0
"""Seconds after which it counts as hung all the same."""

Reason = Literal["interval", "asked", "stop", "best", "decay", "final", "phase"]


@dataclass
class Parts:
    """What a trainer is put together from."""

    config: RunConfig
    config_json: bytes
    config_digest: str
    session: Session
    tokenizer: PreTrainedTokenizerFast
    feeds: Mapping[str, Mapping[str, tuple[Source, float]]]
    """Of each expert: where its rows come from, and each feed's share of them."""
    held_out: Mapping[str, TargetStore]
    schedule: Schedule
    journal: Journal
    checkpoints: CheckpointStore
    ctx: JobContext
    device: torch.device
    dtype: torch.dtype
    """Of the matrix products."""
    sample_prompts: Sequence[str]
    lens: Lens | None = None
    rounds: OnPolicyRounds | None = None
    """Writes what the student learns from its own writing; None where it does not."""
    training_seconds: float = 0.0
    """Unpaused worker time before this moment."""
    measured: Sequence[Prompt] = ()
    """Held-out prompts that the student answers at each evaluation."""


@dataclass(frozen=True)
class StepResult:
    """A step's forward and backward passes, before the optimizer; means over scored positions."""

    loss: float
    kl: float
    ce: float
    weight: float
    tokens: int
    seconds: float


class Trainer:
    """Trains until the schedule ends or somebody stops it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config = parts.config
        self.session = parts.session
        self.schedule = parts.schedule
        self.device = parts.device
        self.ctx = parts.ctx
        self.ctx.attach_trainer(
            save=lambda: self.save("asked"), step=lambda: self.session.progress.step
        )
        self.emit = parts.ctx.emit
        self.pace = Pace(parts.ctx, parts.training_seconds)
        optimizer = self.config.optimizer
        self.sources = {
            n: source for part in parts.feeds.values() for n, (source, _) in part.items()
        }
        self.mixer = Mixer(
            {name: _rows_of(source) for name, source in self.sources.items()},
            optimizer.max_seq_len,
            optimizer.rows_per_step,
            self.config.seed,
        )
        self._ladder = OomLadder(
            rows_per_step=optimizer.rows_per_step,
            micro_batch_size=optimizer.micro_batch_size,
            activation_checkpointing=optimizer.activation_checkpointing,
            device=self.device.type,
        )
        self._micro_batch = optimizer.micro_batch_size
        self._micro_batch_seconds = math.inf  # not known before the first step
        self._activation_checkpointing = False
        self._phase: Phase | None = None
        self._round: int | None = None
        self._own: dict[str, dict[str, OnPolicySource]] = {}  # by expert and feed, of this round
        self._last_save = time.monotonic()
        self._saved_step: int | None = None

    def restore(self, state: TrainState) -> None:
        """Goes on from a checkpoint."""
        rollbacks = sum(d.kind == "rollback" for d in self.schedule.decisions)
        self.session.restore(state, rollbacks)
        self._saved_step = state.step
        self._round = None

    def run(self) -> Literal["completed", "stopped"]:
        """Trains to the end of the schedule ("completed"), or to a checkpoint when asked to stop.

        Raises:
            GladiusError: it can't go on (numbers, memory, disk); the last checkpoint stands.
        """
        while True:
            try:
                self.ctx.checkpoint_point("training")
                self._settle()
                step = self.session.progress.step + 1
                self._apply_settings(step)
                phase = self.schedule.phase_at(step)
                if phase.kind == "save":
                    return "completed"
                self._enter(phase)
                self._finish_step(step, phase, *self._accumulate(step))
            except JobStopped:
                self.save("stop")
                return "stopped"
            except StreamReadError:
                self.save("stop")
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._less_memory(error)

    # One step

    def _enter(self, phase: Phase) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        first, last = self.schedule.bounds(phase)
        self.emit(
            PhaseStarted(
                step=self.session.progress.step,
                phase=phase.index,
                phases=self.schedule.phases[-1].index,
                name=phase.name,
                expert=phase.expert,
                first_step=first or 0,
                last_step=last,
            )
        )

    def _apply_settings(self, step: int) -> None:
        """Micro-batch, activation checkpointing and device as decided for this step."""
        micro = self.schedule.setting_at(step, "micro_batch")
        again = self.schedule.setting_at(step, "activation_checkpointing")
        device = self.schedule.setting_at(step, "device")
        optimizer = self.config.optimizer
        self._micro_batch = int(micro or optimizer.micro_batch_size)
        wanted = bool(optimizer.activation_checkpointing if again is None else again)
        if wanted != self._activation_checkpointing:
            model = self.session.model
            # transformers 5.2x calls it activation checkpointing, and will forget the former name
            word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
            if wanted:
                getattr(model, f"{word}_checkpointing_enable")({"use_reentrant": False})
            else:
                getattr(model, f"{word}_checkpointing_disable")()
            self._activation_checkpointing = wanted
        if device is not None and str(device) != self.device.type:
            self.device = torch.device(str(device))
            self.session.move(self.device)

    def _accumulate(self, step: int) -> tuple[StepResult, dict[str, Cursor]]:
        """Forward and backward over all rows of a step; the gradient stays in the parameters.

        Returns the result, and the cursors after the step. Raises JobStopped when asked to end:
        what was accumulated is dropped, and the step is taken again, whole, by whoever goes on.
        """
        began = time.monotonic()
        self.session.optimizer.zero_grad(set_to_none=True)
        self._enter_round(step)
        mix = self._mix(step)
        dealt, cursors = self.mixer.next(self.session.progress.cursors, mix)
        size = self._micro_batch
        micros = [dealt[n : n + size] for n in range(0, len(dealt), size)]
        blocks = [[self._read(row) for row in micro] for micro in micros]
        scored = sum(len(block.scored) for micro in blocks for row in micro for block in row)
        count = max(1, scored)
        totals = torch.zeros(4, dtype=torch.float64)
        tokens = 0
        for micro, rows in zip(micros, blocks, strict=True):
            self.ctx.checkpoint_point("training")
            batch = make_batch(rows, self.device)
            with self._beating():
                totals += self._backward(batch, self._soft(micro), count)
            tokens += batch.tokens
        loss, kl, ce, weight = totals.tolist()
        seconds = time.monotonic() - began
        self._micro_batch_seconds = seconds / len(micros)
        return StepResult(loss, kl / count, ce / count, weight / count, tokens, seconds), cursors

    def _beating(self) -> AbstractContextManager[None]:
        """Signs of life during a micro-batch that takes longer than a runner waits for one."""
        if self._micro_batch_seconds < _LONG_MICRO_BATCH:
            return nullcontext()
        return self.ctx.busy("training", at_most=_LONGEST_MICRO_BATCH)

    def _mix(self, step: int) -> dict[str, float]:
        """Share of each feed in the rows of a step."""
        mix: dict[str, float] = {}
        cursors = self.session.progress.cursors
        for expert, of_expert in self.schedule.mix_at(step).items():
            own = [
                feed
                for feed in self._own.get(expert, {})
                if cursors.get(feed, Cursor()).epoch < PASSES
            ]
            share = self.config.schedule.on_policy_share if own else 0.0
            for feed, (_, of_feed) in self.parts.feeds[expert].items():
                mix[feed] = of_expert * of_feed * (1.0 - share)
            for feed in own:
                mix[feed] = of_expert * share
        return mix

    def _enter_round(self, step: int) -> None:
        """The on-policy round of this step; where it begins, the student writes it."""
        rounds, progress = self.parts.rounds, self.session.progress
        start = self.schedule.round_at(step) if rounds is not None else None
        if start == self._round:
            return
        for feed in (f for part in self._own.values() for f in part):
            self.mixer.withdraw(feed)
            del self.sources[feed]
        self._own = {}
        if rounds is not None and start is not None:
            began = time.monotonic()
            if progress.round is None or progress.round.start != start:
                phase = self.schedule.phase_at(step)
                mix = {phase.expert: 1.0} if phase.expert else self.schedule.mix_at(step)
                progress.round = rounds.write(self.session.model, start, mix)
            self._own = rounds.open(progress.round)
            self._tell_round(progress.round, time.monotonic() - began)
        for feed, source in ((f, s) for part in self._own.values() for f, s in part.items()):
            self.sources[feed] = source
            self.mixer.offer(feed, source.token_counts())
        progress.cursors = {
            feed: cursor for feed, cursor in progress.cursors.items() if feed in self.sources
        }
        self._round = start

    def _tell_round(self, written: OnPolicyRound, seconds: float) -> None:
        counts = [f"{len(part)} for {name}" for name, part in written.answers.items()]
        tokens = sum(int(s.token_counts().sum()) for p in self._own.values() for s in p.values())
        what = f"the student wrote {', '.join(counts) or 'nothing'} to judge"
        self._say("info", f"{what}: {tokens:,} tokens, {seconds:.1f} s")

    def _read(self, row: PackedRow) -> list[EncodedBlock]:
        source = self.sources[row.feed]
        return [source.row(n, row.epoch) for n in row.blocks]

    def _soft(self, micro: Sequence[PackedRow]) -> SoftSource | None:
        """The soft targets of a micro-batch, its rows one after the other."""
        if self.config.loss.alpha == 0.0:
            return None
        groups: list[tuple[str, int, list[int]]] = []
        for row in micro:
            if groups and groups[-1][:2] == (row.feed, row.epoch):
                groups[-1][2].extend(row.blocks)
            else:
                groups.append((row.feed, row.epoch, list(row.blocks)))
        parts = []
        for feed, epoch, blocks in groups:
            source = self.sources[feed]
            positions = sum(len(source.row(n, epoch).scored) for n in blocks)
            parts.append((positions, source.soft(blocks, epoch, self.device)))
        return parts[0][1] if len(parts) == 1 else ChainedTargets(parts)

    def _backward(self, batch: Batch, soft: SoftSource | None, denominator: int) -> Tensor:
        """Backward of one micro-batch; (4,) sums of loss, weighted KL, CE and weight."""
        hidden = hidden_states(
            self.session.model, batch.input_ids, batch.mask, batch.position_ids, self.parts.dtype
        )  # (B, L, H)
        parts = distillation_loss(
            hidden.flatten(0, 1)[batch.gather],  # (N, H)
            self.session.output_matrix,
            batch.labels,
            soft,
            alpha=self.config.loss.alpha,
            temperature=self.config.loss.temperature,
            denominator=float(denominator),
            chunk_size=self.config.loss.chunk_size,
            compute_dtype=self.parts.dtype,
        )
        parts.loss.backward()
        return torch.stack([parts.loss.detach(), parts.kl, parts.ce, parts.weight]).double().cpu()

    def _finish_step(
        self, step: int, phase: Phase, result: StepResult, cursors: dict[str, Cursor]
    ) -> None:
        """Judges the gradient and takes the optimizer step, or skips it."""
        began = time.monotonic()
        session = self.session
        clip = self.config.optimizer.grad_clip
        norm = float(torch.nn.utils.clip_grad_norm_(session.model.parameters(), clip))
        lr = self.schedule.lr_at(step)
        verdict = session.guard.judge(result.loss, norm)
        if verdict in ("rollback", "stop"):
            self._roll_back(verdict)
            return
        if verdict == "ok":
            for group in session.optimizer.param_groups:
                group["lr"] = lr
            session.optimizer.step()
        else:
            what = "loss or gradient is not finite" if verdict == "non_finite" else "gradient spike"
            action = f"{what}: step {step} skipped, no weight changed"
            value = _finite(norm)
            self.emit(GuardTripped(step=step, guard=verdict, action=action, value=value))
        session.optimizer.zero_grad(set_to_none=True)
        progress = session.progress
        progress.step = step
        progress.cursors = cursors
        progress.tokens_seen += result.tokens
        self.pace.step_done()
        seconds = result.seconds + time.monotonic() - began
        forecast = self.pace.forecast(self.schedule, step)
        self.emit(
            StepDone(
                step=step,
                phase=phase.index,
                expert=phase.expert,
                loss=_finite(result.loss),
                kl=_finite(result.kl),
                ce=_finite(result.ce),
                lr=lr,
                grad_norm=_finite(norm),
                tokens=result.tokens,
                tokens_seen=progress.tokens_seen,
                tokens_per_sec=result.tokens / max(seconds, 1e-9),
                step_seconds=seconds,
                mean_weight=result.weight,
                phase_progress=forecast.phase_progress,
                run_progress=forecast.run_progress,
                phase_eta=forecast.phase_eta,
                run_eta=forecast.run_eta,
                training_seconds=self.pace.training_seconds,
                skipped=verdict != "ok",
            )
        )

    # Between steps

    def _settle(self) -> None:
        """What is due after the last whole step: evaluation, decisions, checkpoint; each once.

        It runs before the next step, so that a run that was stopped in the middle of it does after
        the resume what was left undone.
        """
        progress = self.session.progress
        step = progress.step
        if step == 0:
            if not progress.evaluated:
                self.evaluate()  # where the random student stands
            return
        phase = self.schedule.phase_at(step)
        settings = self.config.schedule
        if settings.hours is not None:
            self._decide(clock_decisions(self.schedule, step, **self.pace.clock(settings.hours)))
        if self.ctx.finish_requested:
            self._decide(finish_decision(self.schedule, step))
        if self.parts.rounds is not None:
            progressed = self.pace.forecast(self.schedule, step).run_progress
            self._decide(on_policy_decision(self.schedule, step, progressed))
        last = self.schedule.bounds(phase)[1]
        ends_phase = last is not None and step >= last
        if not progress.evaluated and (ends_phase or step % settings.eval_interval == 0):
            self.evaluate()
        if phase.kind == "unified" and self._has_converged():
            reason = "held-out loss stopped falling"
            self._decide(finish_decision(self.schedule, step, reason))
        decay = self.schedule.decay
        self._decide(due_decisions(self.schedule, step))
        self._save_if_due(step, ends_phase, decays=decay is not None and decay[0] == step + 1)

    def _has_converged(self) -> bool:
        """Only where nothing else ends the run: neither steps nor hours."""
        settings = self.config.schedule
        if settings.max_steps is not None or settings.hours is not None:
            return False
        first = self.schedule.bounds(self.schedule.phases[-2])[0] or 0
        unified = [e for e in self.session.progress.evaluations if e[0] >= first]
        return converged(unified, settings.converge_patience, settings.converge_delta)

    def _decide(self, decisions: Sequence[Decision]) -> None:
        """Journals decisions, then lets them hold."""
        for decision in decisions:
            self.parts.journal.append(decision)
            self.schedule = self.schedule.with_decision(decision)

    def evaluate(self) -> None:
        """Measures the student on held-out text and lets it write; keeps the best weights.

        Raises JobStopped when asked to end meanwhile: the evaluation is then left out.
        """
        began = time.monotonic()
        config, parts, progress = self.config, self.parts, self.session.progress
        done = evaluate(
            self.session.model,
            parts.held_out,
            temperature=config.loss.temperature,
            tokens_per_batch=max(2048, config.optimizer.max_seq_len),
            device=self.device,
            dtype=parts.dtype,
            beat=self.ctx.checkpoint_point,
        )
        prompt = parts.sample_prompts[len(progress.evaluations) % len(parts.sample_prompts)]
        text = draw_sample(
            self.session.model,
            parts.tokenizer,
            prompt,
            config.schedule.sample_tokens,
            config.seed + progress.step,
            parts.dtype,
            self.ctx.checkpoint_point,
        )
        able = self._capabilities()
        score = done.bits_per_byte
        best = math.isfinite(score) and (progress.best is None or score < progress.best)
        progress.evaluations.append((progress.step, score))
        if best:
            progress.best = score
        self._follow_deficits(done)
        seconds = time.monotonic() - began
        self.emit(msgspec.structs.replace(done, step=progress.step, best=best, seconds=seconds))
        self.emit(SampleDrawn(step=progress.step, prompt=prompt, text=text))
        if able is not None:
            self.emit(msgspec.structs.replace(able, step=progress.step))
        for reading in parts.lens.read(self.session.model, parts.dtype) if parts.lens else ():
            self.emit(msgspec.structs.replace(reading, step=progress.step))
        if best and progress.step > 0:
            self._save_best(score)

    def _follow_deficits(self, done: EvalDone) -> None:
        """With `schedule.mix = "deficits"`, the unified phase mixes by what is lacking."""
        deficits = {score.expert: score.kl for score in done.scores}
        decided = mix_decision(self.schedule, self.session.progress.step, deficits)
        self._decide(decided)
        for decision in decided:
            self._say("info", f"the experts are mixed by what is lacking of them: {decision.value}")

    def _capabilities(self) -> CapabilitiesScored | None:
        """The student's answers to held-out prompts, judged; None where none are asked."""
        parts = self.parts
        if not parts.measured:
            return None
        return score_student(
            self.session.model,
            parts.tokenizer,
            parts.measured,
            self.config.schedule.capability_tokens,
            parts.dtype,
            self.ctx.checkpoint_point,
        )

    # Checkpoints

    def _save_if_due(self, step: int, ends_phase: bool, decays: bool) -> None:
        if self._saved_step == step and not decays:
            return
        settings = self.config.checkpoint
        minutes = settings.interval_minutes
        since = time.monotonic() - self._last_save
        if decays:
            self.save("decay", protect=True)
        elif ends_phase and self.schedule.phase_at(step + 1).kind != "save":
            self.save("phase")
        elif (settings.interval_steps and step % settings.interval_steps == 0) or (
            minutes is not None and since >= minutes * 60
        ):
            self.save("interval")

    def save(self, reason: Reason, protect: bool = False) -> None:
        """A checkpoint of the last whole step.

        Raises:
            CheckpointError: it could not be written, and the run can't go on without it.
        """
        self._last_save = time.monotonic()
        try:
            saved = self.parts.checkpoints.save(
                self.session.state(self.pace.training_seconds),
                config_json=self.parts.config_json,
                config_digest=self.parts.config_digest,
                reason=reason,
                protect=protect,
            )
        except CheckpointError as error:
            if reason in ("stop", "final"):
                raise
            self._say("warning", f"no checkpoint was saved, training goes on: {error}")
            return
        self._saved_step = self.session.progress.step
        self.pace.save_seconds = max(1.0, saved.seconds)
        self._announce(saved, reason)

    def _save_best(self, score: float) -> None:
        try:
            saved = self.parts.checkpoints.save_best(
                self.session.state(self.pace.training_seconds),
                config_json=self.parts.config_json,
                config_digest=self.parts.config_digest,
                score=score,
            )
        except CheckpointError as error:
            self._say("warning", f"the best weights could not be kept: {error}")
            return
        if saved is not None:
            self._announce(saved, "best")

    def _announce(self, saved: SavedInfo, reason: Reason) -> None:
        self.emit(
            CheckpointSaved(
                step=self.session.progress.step,
                path=str(saved.path),
                bytes=saved.bytes,
                seconds=saved.seconds,
                reason=reason,
                best=reason == "best",
            )
        )

    def reject(self, path: Path, reason: str, moved_to: Path | None) -> None:
        """Reports a checkpoint that does not verify."""
        moved = "" if moved_to is None else str(moved_to)
        step = self.session.progress.step
        self.emit(CheckpointRejected(step=step, path=str(path), reason=reason, moved_to=moved))

    # When things go wrong

    def _roll_back(self, verdict: str) -> None:
        """Back to the last good checkpoint, with a lower learning rate; or the end."""
        step = self.session.progress.step
        limit = self.config.guards.max_non_finite
        what = f"training stopped at step {step}: {limit} steps in a row were not finite"
        if verdict == "stop":
            raise GladiusError(
                f"{what}, and lower learning rates did not help; the last checkpoint is good: "
                "train anew (--fresh) with a lower optimizer.lr or device.precision=fp32"
            )
        # A checkpoint from among the bad steps would only lead back here.
        store = self.parts.checkpoints
        loaded = store.load_newest(self.reject, up_to=max(0, step - limit + 1))
        if loaded is None:
            raise GladiusError(
                f"{what} before the first checkpoint; lower optimizer.lr and start with --fresh"
            )
        state, _ = loaded
        store.supersede_after(state.step)
        scale = self.config.guards.rollback_lr_scale
        self._decide([Decision(state.step, "rollback", scale, f"{limit} steps were not finite")])
        self.restore(state)
        self._phase = None
        action = f"back to the checkpoint of step {state.step}, learning rate x {scale:g}"
        self.emit(GuardTripped(step=state.step, guard="rollback", action=action, value=scale))

    def _less_memory(self, error: Exception) -> None:
        """One rung down the ladder; the step is then taken again."""
        self.session.optimizer.zero_grad(set_to_none=True)
        step = self.session.progress.step
        ladder = self._ladder
        for taken in self.schedule.decisions:
            ladder = ladder.after(taken)
        decision = ladder.next(step)
        if decision is None:
            raise GladiusError(
                "out of memory, with the smallest micro-batch and activation checkpointing on the "
                "CPU; use a smaller optimizer.max_seq_len or a smaller student"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._decide([decision])
        action = f"{decision.kind.replace('_', ' ')} is now {decision.value}"
        self.emit(GuardTripped(step=step, guard="out_of_memory", action=action))

    def _say(self, level: Literal["info", "warning", "error"], text: str) -> None:
        self.emit(LogLine(step=self.session.progress.step, level=level, text=text))


def _rows_of(source: Any) -> np.ndarray | WindowedSource:
    """What the mixer deals rows of: all blocks' lengths, or windows."""
    return source if hasattr(source, "window") else source.token_counts()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
