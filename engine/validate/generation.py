"""Greedy answers of the model under validation, in batches and with progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.generation import Completion, Generator
from engine.text.examples import Message
from engine.validate.loading import LoadedModel

_BATCH_SIZE = 64

ReportProgress = Callable[[str, float, float | None], None]
"""Called with (label, done, total) between two tokens; may raise to stop."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer.

    Attributes:
        text: as generated, with white space around it.
        ids: without the end token.
        complete: whether the model ended the answer; False: cut off at the limit.
    """

    text: str
    ids: tuple[int, ...]
    complete: bool


@dataclass
class _GreedyWithProgress:
    """A greedy sampler (see engine.generation.Sampler) that reports each step."""

    report: ReportProgress
    label: str
    done: int
    total: int

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        self.done += 1
        self.report(self.label, self.done, self.total)
        return logits.argmax(-1)


class AnswerGenerator:
    """Generates greedy answers with a loaded model."""

    def __init__(self, loaded: LoadedModel, report: ReportProgress) -> None:
        self._loaded = loaded
        self._report = report
        self._generator = Generator(loaded.model, loaded.tokenizer, _end_ids(loaded))

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins.

        A model without a chat template gets the messages as plain lines.
        """
        tokenizer = self._loaded.tokenizer
        if tokenizer.chat_template is None:
            text = "".join(message.content + "\n" for message in messages)
            return list(tokenizer(text).input_ids)
        return self._generator.encode_prompt(messages)

    def fits(self, messages: Sequence[Message], max_new_tokens: int) -> bool:
        """Whether prompt and answer fit into the model's context."""
        return len(self.encode_prompt(messages)) + max_new_tokens <= self._loaded.context_length

    def answer(
        self, conversations: Sequence[Sequence[Message]], max_new_tokens: int, label: str
    ) -> list[GeneratedAnswer]:
        """Answers to the conversations, in their order. Prompts of similar length share a batch.

        label: what the progress reports say.
        """
        prompts = [self.encode_prompt(messages) for messages in conversations]
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        batches = [order[n : n + _BATCH_SIZE] for n in range(0, len(order), _BATCH_SIZE)]
        total = len(batches) * max_new_tokens
        answers: dict[int, GeneratedAnswer] = {}
        for number, batch in enumerate(batches):
            completions = self._generator.complete(
                [prompts[n] for n in batch],
                [max_new_tokens] * len(batch),
                _GreedyWithProgress(self._report, label, number * max_new_tokens, total),
                heartbeat=lambda _: self._report(label, 0, None),
            )
            answers.update(zip(batch, map(self._to_answer, completions), strict=True))
        return [answers[n] for n in range(len(prompts))]

    def _to_answer(self, completion: Completion) -> GeneratedAnswer:
        text = self._loaded.tokenizer.decode(list(completion.ids), skip_special_tokens=True)
        return GeneratedAnswer(str(text), completion.ids, completion.finish_reason == "eos")


def _end_ids(loaded: LoadedModel) -> list[int]:
    """The end tokens of the tokenizer and of the generation config."""
    configured = getattr(loaded.model.generation_config, "eos_token_id", None)
    ids = [
        loaded.tokenizer.eos_token_id,
        *(configured if isinstance(configured, list) else [configured]),
    ]
    return list(dict.fromkeys(i for i in ids if isinstance(i, int)))
