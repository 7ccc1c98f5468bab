"""On-policy rounds: the student answers prompts of its training text, and each expert scores the
answers (generalised knowledge distillation, arXiv 2306.13649).

The text of a round is stored in the checkpoint, since the weights that wrote it have changed when
it is trained on; its targets are computed again from the text. `phases` decides when a round
begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.config import RunConfig
from engine.distill.align.blocks import EncodedBlock
from engine.distill.align.projection import Projector
from engine.distill.data.sources import FixedSource, InMemorySource, OnlineSource
from engine.distill.student import student_generator
from engine.distill.teacher.pool import LoadedExpert
from engine.distill.teacher.scoring import score_blocks
from engine.distill.teacher.soft_targets import OnPolicyTargets
from engine.distill.teacher.teacher import Teacher
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example, Message

PASSES = 2
"""Times that the rows of a round are trained on before the next round."""

_TEMPERATURE, _TOP_P = 0.8, 0.95
"""Sampling of the student's answers where the config does not set it."""

Prompts = Sequence[tuple[Message, ...]]


class OnPolicyRound(msgspec.Struct, frozen=True):
    """The student's answers of one round, by the expert that scores them."""

    start: int
    """The first step that trains on it."""
    answers: dict[str, tuple[Example, ...]]

    def source_name(self, expert: str) -> str:
        """Name of its source; a new one each round, so that every round begins at its first row."""
        return f"{expert}/own@{self.start}"


@dataclass(frozen=True)
class OnPolicyTeacher:
    """An expert that scores what the student writes."""

    spec: ExpertSpec
    prompts: Prompts
    """Prompts of its training text."""
    load: Callable[[], LoadedExpert]
    """Returns the expert, loaded if it is not in memory."""
    release: Callable[[], None]
    """Frees its memory, where it does not stay loaded."""


@dataclass(frozen=True)
class OnPolicySource(FixedSource):
    """Blocks that the student wrote: only the expert's distribution is learnt, not the text."""

    scored: FixedSource

    def token_counts(self) -> np.ndarray:
        return self.scored.token_counts()

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        return self.scored.block(index, epoch)

    def soft_targets(
        self, blocks: Sequence[int], epoch: int, device: torch.device
    ) -> OnPolicyTargets:
        return OnPolicyTargets(self.scored.soft_targets(blocks, epoch, device))


class OnPolicyRounds:
    """Writes rounds, and opens them as sources of training blocks."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerFast,
        teachers: Mapping[str, OnPolicyTeacher],
        online: bool,
        dtype: torch.dtype,
        heartbeat: Callable[[str], None],
    ) -> None:
        """
        Args:
            tokenizer: the student's.
            online: whether experts stay loaded and score blocks when they are trained on.
            dtype: of the student's matrix products.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._teachers = teachers
        self._online = online
        self._dtype = dtype
        self._heartbeat = heartbeat

    def write(self, model: LlamaForCausalLM, start: int, mix: Mapping[str, float]) -> OnPolicyRound:
        """The student's answers to prompts of the experts, in proportion to `mix`.

        A pure function of the weights, the seed and `start`.
        """
        schedule, data = self._config.schedule, self._config.data
        temperature = _TEMPERATURE if data.answer_temperature is None else data.answer_temperature
        generator = student_generator(model, self._tokenizer, self._dtype)
        answers: dict[str, tuple[Example, ...]] = {}
        model.eval()
        try:
            for name, share in mix.items():
                count = round(schedule.on_policy_answers * share)
                chosen = self._choose(name, start, count)
                if not chosen:
                    continue
                written = generator.generate(
                    chosen,
                    max_new_tokens=data.max_answer_tokens,
                    temperature=temperature,
                    top_p=_TOP_P if data.answer_top_p is None else data.answer_top_p,
                    seed=self._config.seed * 1_000_003 + start,
                    batch_size=data.generation_batch,
                    heartbeat=self._heartbeat,
                )
                answers[name] = tuple(
                    Example(
                        messages=(*messages, Message("assistant", answer.text)),
                        complete=answer.complete,
                    )
                    for messages, answer in zip(chosen, written, strict=True)
                    if answer.text
                )
        finally:
            model.train()
        return OnPolicyRound(start, answers)

    def _choose(self, name: str, start: int, count: int) -> list[tuple[Message, ...]]:
        """`count` prompts in an order that the round seeds; they repeat where there are fewer."""
        prompts = self._teachers[name].prompts
        rng = np.random.default_rng([self._config.seed, start, *name.encode()])
        order = rng.permutation(len(prompts)).tolist()
        return [prompts[order[n % len(order)]] for n in range(count)] if order else []

    def open(self, written: OnPolicyRound) -> dict[str, dict[str, OnPolicySource]]:
        """The round's source of each expert, by its name; experts without a block have none."""
        return {
            name: {written.source_name(name): source}
            for name, answers in written.answers.items()
            if (source := self._source(name, answers, written.start)) is not None
        }

    def _source(self, name: str, answers: Sequence[Example], start: int) -> OnPolicySource | None:
        teacher = self._teachers[name]
        expert = teacher.load()
        config = self._config
        blocks = [block for example in answers for block in expert.encoder.encode(example).blocks]
        if not blocks:
            return None
        if self._online:

            def load_teacher() -> tuple[Teacher, Projector]:
                loaded = teacher.load()
                return loaded.teacher, loaded.projector

            return OnPolicySource(OnlineSource(blocks, load_teacher, config.loss.temperature))
        scored = score_blocks(
            expert.teacher,
            expert.projector,
            blocks,
            temperature=config.loss.temperature,
            top_k=config.targets.top_k,
            draws=config.targets.draws,
            epochs=PASSES,
            generator=torch.Generator().manual_seed(config.seed * 1_000_003 + start),
            heartbeat=self._heartbeat,
        )
        teacher.release()
        return OnPolicySource(InMemorySource(scored))
