"""Owns on-policy rounds: the student answers prompts of its text, and each expert judges what it
wrote (generalised knowledge distillation, arXiv 2306.13649).

A round's text is part of the checkpoint, since the weights that wrote it are gone when it is learnt
from; what the expert says to it is found again from the text. It does not own when rounds begin
(`phases`) nor how rows of them are dealt (`feeds`, `trainer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder, EncodedBlock, TextBlock, make_blocks
from engine.distill.align.projection import Projector
from engine.distill.data.sources import InMemorySource, OnlineSource
from engine.distill.student import student_generator
from engine.distill.teacher.scoring import score_blocks
from engine.distill.teacher.soft_targets import OnPolicyTargets
from engine.distill.teacher.teacher import Teacher
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example, Message

PASSES = 2
"""Times that a round's rows are learnt from before the next round."""

_TEMPERATURE, _TOP_P = 0.8, 0.95
"""How the student writes, where the config does not say."""

Prompts = Sequence[tuple[Message, ...]]


class OnPolicyRound(msgspec.Struct, frozen=True):
    """What the student wrote, by the expert that judges it."""

    start: int
    """The step that it was written before."""
    answers: dict[str, tuple[Example, ...]]

    def feed(self, expert: str) -> str:
        """Its feed's name: another one each round, so that every round begins at its first row."""
        return f"{expert}/own@{self.start}"


@dataclass(frozen=True)
class OnPolicyTeacher:
    """An expert as rounds need it."""

    spec: ExpertSpec
    prompts: Prompts
    """Of its training text."""
    teacher_forward: Callable[[], tuple[Teacher, ChatEncoder, Projector]]
    """Loads it where it is not in memory."""
    release: Callable[[], None]
    """Where it does not stay."""


@dataclass(frozen=True)
class OnPolicySource:
    """Blocks that the student wrote."""

    blocks: Sequence[TextBlock]
    scored: OnlineSource | InMemorySource
    own = True

    def token_counts(self) -> np.ndarray:
        """Student tokens of each block, (blocks,) int64."""
        return np.array([len(block.student_ids) for block in self.blocks], dtype=np.int64)

    def row(self, block: int, epoch: int = 0) -> EncodedBlock:
        return self.scored.row(block)

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> OnPolicyTargets:
        return OnPolicyTargets(self.scored.soft(blocks, epoch, device))


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


class OnPolicyRounds:
    """Writes rounds, and opens them as sources of training blocks."""

    def __init__(
        self,
        config: RunConfig,
        tokenizer: PreTrainedTokenizerFast,
        student: ChatEncoder,
        judges: Mapping[str, OnPolicyTeacher],
        online: bool,
        dtype: torch.dtype,
        beat: Callable[[str], None],
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._student = student
        self._judges = judges
        self._online = online
        self._dtype = dtype
        self._beat = beat

    def write(self, model: LlamaForCausalLM, start: int, mix: Mapping[str, float]) -> OnPolicyRound:
        """Lets the student answer prompts of the experts in proportion to `mix`.

        A function of the weights, the seed and `start`.
        """
        schedule, data = self._config.schedule, self._config.data
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
                    temperature=_or(data.answer_temperature, _TEMPERATURE),
                    top_p=_or(data.answer_top_p, _TOP_P),
                    seed=self._config.seed * 1_000_003 + start,
                    batch_size=data.generation_batch,
                    heartbeat=self._beat,
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
        """Each prompt once, in an order of the round's own, and again where they are few."""
        prompts = self._judges[name].prompts
        rng = np.random.default_rng([self._config.seed, start, *name.encode()])
        order = rng.permutation(len(prompts)).tolist()
        return [prompts[order[n % len(order)]] for n in range(count)] if order else []

    def open(self, written: OnPolicyRound) -> dict[str, dict[str, OnPolicySource]]:
        """The round's source for each expert, by its feed; experts without a block have none."""
        return {
            name: {written.feed(name): source}
            for name, answers in written.answers.items()
            if (source := self._source(name, answers, written.start)) is not None
        }

    def _source(self, name: str, answers: Sequence[Example], start: int) -> OnPolicySource | None:
        judge = self._judges[name]
        teacher, reader, projector = judge.teacher_forward()
        config = self._config
        most = config.optimizer.max_seq_len
        blocks = [
            block
            for example in answers
            for block in make_blocks(
                *(example, self._student, reader),
                max_student_tokens=most,
                max_teacher_tokens=max(most, 2048),
                trust_end=judge.spec.trust_end,
            )
            if block is not None and len(block.alignment)
        ]
        if not blocks:
            return None
        if self._online:
            teacher_forward = judge.teacher_forward

            def teach() -> tuple[Teacher, Projector]:
                teacher, _, projector = teacher_forward()
                return teacher, projector

            return OnPolicySource(blocks, OnlineSource(blocks, teach, config.loss.temperature))
        scored = score_blocks(
            teacher,
            projector,
            blocks,
            temperature=config.loss.temperature,
            top_k=config.targets.top_k,
            draws=config.targets.draws,
            epochs=PASSES,
            generator=torch.Generator().manual_seed(config.seed * 1_000_003 + start),
            heartbeat=self._beat,
        )
        judge.release()
        return OnPolicySource(blocks, InMemorySource(scored))
