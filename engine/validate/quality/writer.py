"""Owns letting a loaded model write: prompts in, greedy answers out, in batches. What the answers
are worth is not owned here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from engine.validate.checks.load import Loaded, quiet

Chat = Sequence[dict[str, str]]
Serve = Callable[[str, float, float | None], None]
"""A sign of life: what is done, how much of it, of how much; raises when the job is to end."""


@dataclass(frozen=True)
class Written:
    """An answer."""

    text: str
    """As it was written, white space around it included."""
    ids: tuple[int, ...]
    """Without the end of text."""
    ended: bool
    """Whether the end of text was written; False: cut at the limit."""


class _Served(StoppingCriteria):
    """Stops nothing: it lets the job live (and be ended) between two tokens."""

    def __init__(self, serve: Callable[[], None]) -> None:
        self._serve = serve

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self._serve()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Writer:
    """Greedy answers of a loaded model."""

    def __init__(self, loaded: Loaded, serve: Serve) -> None:
        self._loaded = loaded
        self._serve = serve
        tokenizer = loaded.tokenizer
        ends = getattr(loaded.model.generation_config, "eos_token_id", None)
        given = ends if isinstance(ends, list) else [ends]
        ids = [tokenizer.eos_token_id, *given]
        self._ends = list(dict.fromkeys(i for i in ids if isinstance(i, int)))
        self._pad = self._ends[0] if self._ends else 0

    def prompt_ids(self, chat: Chat) -> list[int]:
        """A conversation as the model reads it, up to where its answer begins."""
        tokenizer = self._loaded.tokenizer
        if tokenizer.chat_template is None:
            text = "\n".join(message["content"] for message in chat) + "\n"
            return list(tokenizer(text)["input_ids"])  # type: ignore[arg-type]
        text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        ids: Any = tokenizer(str(text), add_special_tokens=False).input_ids
        # Some templates write the BOS themselves, the others leave it to the tokenizer.
        bos = tokenizer.bos_token_id
        if bos is not None and tokenizer("").input_ids[:1] == [bos] and ids[:1] != [bos]:
            ids = [bos, *ids]
        return list(ids)

    def fits(self, chat: Chat, max_new_tokens: int) -> bool:
        """Whether prompt and answer fit into the model's context."""
        return len(self.prompt_ids(chat)) + max_new_tokens <= self._loaded.context

    def write(
        self, chats: Sequence[Chat], max_new_tokens: int, doing: str, batch_size: int = 64
    ) -> list[Written]:
        """Answers to the conversations, in their order; batches of like length."""
        prompts = [self.prompt_ids(chat) for chat in chats]
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        answers: dict[int, Written] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            steps = [start // batch_size * max_new_tokens, -(-len(order) // batch_size)]
            steps[1] *= max_new_tokens

            def serve(steps: list[int] = steps) -> None:
                self._serve(doing, *steps)
                steps[0] += 1

            written = self._batch([prompts[n] for n in batch], max_new_tokens, serve)
            answers.update(zip(batch, written, strict=True))
        return [answers[n] for n in range(len(prompts))]

    @torch.no_grad()
    def _batch(
        self, prompts: list[list[int]], max_new_tokens: int, serve: Callable[[], None]
    ) -> list[Written]:
        longest = max(len(prompt) for prompt in prompts)
        device = self._loaded.device
        ids = [[self._pad] * (longest - len(p)) + p for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        serve()
        with quiet():
            output = self._loaded.model.generate(
                torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=self._ends or None,
                    pad_token_id=self._pad,
                ),
                stopping_criteria=StoppingCriteriaList([_Served(serve)]),
                use_cache=True,
            )
        return [self._written(ids) for ids in output[:, longest:].tolist()]

    def _written(self, ids: list[int]) -> Written:
        end = next((n for n, token in enumerate(ids) if token in self._ends), None)
        kept = ids if end is None else ids[:end]
        text = str(self._loaded.tokenizer.decode(kept, skip_special_tokens=True))
        return Written(text, tuple(kept), end is not None)

    @torch.no_grad()
    def speeds(self) -> tuple[float, float, int]:
        """Tokens a second: of a prompt, and of an answer (one row each); and the prompt's tokens.

        The median of three passes over a prompt, and of the single steps of an answer, after a
        first one that warms up.
        """
        model, device = self._loaded.model, self._loaded.device
        size = max(8, min(512, self._loaded.context // 2))
        rows = int(model.config.vocab_size)
        prompt = (torch.arange(size, device=device) * 37 % rows)[None]
        passes = []
        output: Any = None
        for _ in range(4):
            self._serve("timing a prompt", 0, None)
            _wait(device)
            began = time.perf_counter()
            output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
            _wait(device)
            passes.append(time.perf_counter() - began)
        steps = []
        cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
        for _ in range(min(25, self._loaded.context - size)):
            self._serve("timing an answer", 0, None)
            _wait(device)
            began = time.perf_counter()
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token = output.logits[:, -1:].argmax(-1)
            _wait(device)
            steps.append(time.perf_counter() - began)
        return size / median(passes[1:]), 1.0 / median(steps[1:]), size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
