"""Evaluations during training: held-out loss, a sample, capabilities and the lens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from transformers import PreTrainedTokenizerFast

from engine.config import RunConfig
from engine.distill.teacher.target_store import TargetStore
from engine.distill.train.capabilities import score_student
from engine.distill.train.checkpoint_policy import CheckpointPolicy
from engine.distill.train.decisions import mix_decision
from engine.distill.train.evaluation import draw_sample, evaluate
from engine.distill.train.journal import RunPlan
from engine.distill.train.lens import Lens
from engine.distill.train.session import Session
from engine.events import (
    CapabilitiesScored,
    EvalDone,
    Event,
    GuardTripped,
    LogLine,
    SampleDrawn,
)
from engine.out_of_memory import with_less
from engine.prompts.prompt import Prompt
from engine.run.job import JobContext

_LEAST_TOKENS = 64
"""Tokens of a held-out batch at which every block has a batch of its own."""


@dataclass(frozen=True)
class EvaluationData:
    """Evaluation data of a run.

    Attributes:
        held_out: held-out blocks with targets, by expert.
        tokenizer: the student's.
        sample_prompts: each evaluation answers the next one.
        capability_prompts: held-out prompts that every evaluation answers; may be empty.
        lens: compares next-token distributions on fixed sentences; None: without.
    """

    held_out: Mapping[str, TargetStore]
    tokenizer: PreTrainedTokenizerFast
    sample_prompts: Sequence[str]
    capability_prompts: Sequence[Prompt] = ()
    lens: Lens | None = None


class Evaluator:
    """Evaluates the student between steps, reports the results and keeps the best weights."""

    def __init__(
        self,
        data: EvaluationData,
        *,
        config: RunConfig,
        session: Session,
        plan: RunPlan,
        checkpoints: CheckpointPolicy,
        dtype: torch.dtype,
        ctx: JobContext,
    ) -> None:
        """dtype: of the matrix products."""
        self.data = data
        self._config = config
        self._session = session
        self._plan = plan
        self._checkpoints = checkpoints
        self._dtype = dtype
        self._ctx = ctx
        self._tokens_per_batch = max(2048, config.optimizer.max_seq_len)

    def run(self) -> None:
        """Evaluate the student after the current step.

        Draws no random number of the training and changes no weight. Raises JobStopped on a
        stop: this evaluation then has no result, and is repeated after the resume.
        """
        began = time.monotonic()
        progress = self._session.progress
        done = self._held_out()
        sample = self._sample()
        capabilities = self._capabilities()
        score = done.bits_per_byte
        best = math.isfinite(score) and (progress.best is None or score < progress.best)
        progress.evaluations.append((progress.step, score))
        if best:
            progress.best = score
        self._update_mix(done)
        seconds = time.monotonic() - began
        self._emit(msgspec.structs.replace(done, best=best, seconds=seconds))
        self._emit(sample)
        if capabilities is not None:
            self._emit(capabilities)
        if self.data.lens is not None:
            for reading in self.data.lens.read(self._session.model, self._dtype):
                self._emit(reading)
        if best and progress.step > 0:
            self._checkpoints.save_best(score)

    def _held_out(self) -> EvalDone:
        """Scores on held-out text; the batches become smaller for good when memory runs out."""

        def run(tokens_per_batch: int) -> EvalDone:
            return evaluate(
                self._session.model,
                self.data.held_out,
                temperature=self._config.loss.temperature,
                tokens_per_batch=tokens_per_batch,
                device=self._session.device,
                dtype=self._dtype,
                heartbeat=self._ctx.checkpoint_point,
            )

        done, fitting = with_less(run, self._tokens_per_batch, least=_LEAST_TOKENS)
        if fitting < self._tokens_per_batch:
            self._tokens_per_batch = fitting
            action = f"evaluations have batches of {fitting} tokens now"
            self._emit(GuardTripped(guard="out_of_memory", action=action))
        return done

    def _sample(self) -> SampleDrawn:
        """An answer of the student to the next of the sample prompts."""
        progress, prompts = self._session.progress, self.data.sample_prompts
        prompt = prompts[len(progress.evaluations) % len(prompts)]
        text = draw_sample(
            self._session.model,
            self.data.tokenizer,
            prompt,
            max_new_tokens=self._config.schedule.sample_tokens,
            seed=self._config.seed + progress.step,
            dtype=self._dtype,
            heartbeat=self._ctx.checkpoint_point,
        )
        return SampleDrawn(prompt=prompt, text=text)

    def _capabilities(self) -> CapabilitiesScored | None:
        """Results of the held-out prompts by capability; None if there are no prompts."""
        if not self.data.capability_prompts:
            return None
        return score_student(
            self._session.model,
            self.data.tokenizer,
            self.data.capability_prompts,
            max_new_tokens=self._config.schedule.capability_tokens,
            dtype=self._dtype,
            heartbeat=self._ctx.checkpoint_point,
        )

    def _update_mix(self, done: EvalDone) -> None:
        """With `schedule.mix = "deficits"`: mix the experts by held-out KL."""
        deficits = {score.expert: score.kl for score in done.scores}
        decisions = mix_decision(self._plan.schedule, self._session.progress.step, deficits)
        self._plan.decide(decisions)
        for decision in decisions:
            self._emit(LogLine(level="info", text=f"new mix by held-out KL: {decision.value}"))

    def _emit(self, event: Event) -> None:
        self._ctx.emit(msgspec.structs.replace(event, step=self._session.progress.step))
