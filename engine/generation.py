"""Generate text with a causal language model, in left-padded batches with a key-value cache.

Shapes: B prompts, R rows still being generated, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from engine.chat import ChatFormat, encode_chat, render_chat
from engine.determinism import cumsum
from engine.out_of_memory import with_less
from engine.text.examples import Message

_TOP_CANDIDATES = 512
"""Tokens that are searched for the nucleus first; the whole vocabulary is sorted only where these
hold less than top-p."""
_STOP_STRING_TOKENS = 16
"""Newest tokens that are decoded to look for a stop string."""

_UNLIMITED = 1 << 30

Heartbeat = Callable[[str], None]
"""Called with what is being done before each token; may raise to interrupt."""


class Answer(NamedTuple):
    """A generated answer as text; `complete` is False where the token limit cut it."""

    text: str
    complete: bool


class Completion(NamedTuple):
    """The generated tokens of one prompt, without the end token.

    finish_reason: "eos" (an end token), "stop_string", or "length" (the token limit, a full context
    or logits that are not finite).
    """

    ids: tuple[int, ...]
    finish_reason: Literal["eos", "stop_string", "length"]


Completions = list[Completion]


class Sampler(Protocol):
    """Chooses the next token of each row."""

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor | None:
        """(R,) tokens from (R, V) logits; None ends generation.

        rows: for each row, the index of its prompt in the batch.
        """
        ...


class GreedySampler:
    """The most probable token."""

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        return logits.argmax(-1)


@dataclass(frozen=True)
class NucleusSampler:
    """Top-p sampling (arXiv 1904.09751); greedy where the temperature is 0."""

    temperature: Tensor
    """(B,) on the model's device."""
    top_p: Tensor
    """(B,) on the model's device."""
    generator: torch.Generator

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        # One draw for every prompt, finished or not: a finished row does not change other draws.
        draws = torch.rand(len(self.temperature), generator=self.generator)[rows]
        temperature, top_p = self.temperature[rows], self.top_p[rows]
        return sample_top_p(logits.float(), draws.to(logits.device), temperature, top_p)


@dataclass(frozen=True)
class MultinomialSampler:
    """Samples from the whole distribution; ends generation where the logits are not finite."""

    temperature: float
    generator: torch.Generator

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor | None:
        p = (logits.float().cpu() / self.temperature).softmax(-1)  # (R, V)
        if not bool(torch.isfinite(p).all()):
            return None
        return torch.multinomial(p, 1, generator=self.generator).squeeze(-1).to(logits.device)


@dataclass(frozen=True)
class _PartSampler:
    """Samples for some prompts of a batch with the numbers that the whole batch would draw."""

    sampler: Sampler
    prompts: range
    """The part's prompts, as indices into the batch."""

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor | None:
        return self.sampler(logits, [self.prompts[row] for row in rows])


class Generator:
    """Generates answers with a loaded model.

    Attributes:
        model: a causal language model of transformers; the caller sets eval mode.
        tokenizer: its tokenizer.
        end_ids: ids of all tokens that end a turn; the first is the one that training writes.
        chat_format: how conversations become prompts.
        stop_strings: texts that end an answer before them.
        title: the model's name in heartbeats.
        compute_dtype: autocast type of the matrix products; None leaves the model's own.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        end_ids: Sequence[int],
        *,
        chat_format: ChatFormat = "template",
        stop_strings: Sequence[str] = (),
        title: str = "the model",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = tuple(end_ids)
        self.chat_format: ChatFormat = chat_format
        self.stop_strings = tuple(stop_strings)
        self.title = title
        self.compute_dtype = compute_dtype
        self.pad_id = self.end_ids[0] if self.end_ids else 0
        self._special_ids = set(tokenizer.all_special_ids)
        self._rows_that_fit = _UNLIMITED

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most; None where nothing limits them."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model reads it, up to where its answer begins."""
        return render_chat(self.tokenizer, messages, self.chat_format)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids from which an answer to `messages` is generated."""
        return encode_chat(self.tokenizer, messages, self.chat_format)

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float | Sequence[float],
        top_p: float | Sequence[float],
        seed: int,
        batch_size: int,
        heartbeat: Heartbeat = lambda doing: None,
    ) -> list[Answer]:
        """Answers to the conversations, in their order, by top-p sampling.

        max_new_tokens, temperature (0: greedy) and top_p hold for all, or one for each
        conversation. Prompts of similar length share a batch. The same arguments give the same
        answers on the same machine and thread count. An answer ends at an end token or a stop
        string, or is cut at its limit or where the model's context is full.
        """
        prompts = [self.encode_prompt(messages) for messages in conversations]
        count = len(prompts)
        limits, temperatures, top_ps = (
            list(value) if isinstance(value, Sequence) else [value] * count
            for value in (max_new_tokens, temperature, top_p)
        )
        order = sorted(range(count), key=lambda n: len(prompts[n]))
        answers: dict[int, Answer] = {}
        for start in range(0, count, batch_size):
            batch = order[start : start + batch_size]

            def complete(part: range, batch: list[int] = batch, start: int = start) -> Completions:
                sampler = NucleusSampler(
                    torch.tensor([float(temperatures[n]) for n in batch], device=self.device),
                    torch.tensor([float(top_ps[n]) for n in batch], device=self.device),
                    torch.Generator().manual_seed((seed * 1_000_003 + start) % 2**63),
                )
                return self.complete(
                    [prompts[batch[n]] for n in part],
                    [int(limits[batch[n]]) for n in part],
                    _PartSampler(sampler, part),
                    heartbeat,
                )

            completions = self._in_parts(len(batch), complete)
            answers.update(zip(batch, map(self.to_answer, completions), strict=True))
        return [answers[n] for n in range(count)]

    def _in_parts(self, count: int, complete: Callable[[range], Completions]) -> Completions:
        """The completions of a batch; in smaller parts, from then on, when memory runs out."""
        done: Completions = []
        while len(done) < count:
            first, size = len(done), min(self._rows_that_fit, count - len(done))
            part, fitting = with_less(lambda n, at=first: complete(range(at, at + n)), size)
            if fitting < size:
                self._rows_that_fit = fitting
            done += part
        return done

    @torch.no_grad()
    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: Sequence[int],
        sampler: Sampler,
        heartbeat: Heartbeat = lambda doing: None,
    ) -> list[Completion]:
        """Completions of one batch of B prompts (token ids), at most max_new_tokens[b] each."""
        longest = max(len(prompt) for prompt in prompts)
        steps = int(min(max(max_new_tokens), (self.context or math.inf) - longest))
        input_ids, mask = self._left_padded(prompts, longest)  # (B, L)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        rows = list(range(len(prompts)))  # the prompt of each row that is still generated
        written: list[list[int]] = [[] for _ in prompts]
        finished: dict[int, Completion] = {}
        with self._autocast():
            for step in range(steps):
                heartbeat(f"{self.title} is writing")
                # All prompts at once can take a minute on a busy CPU: one heartbeat per layer.
                with self._layer_heartbeats(heartbeat) if step == 0 else nullcontext():
                    logits = self._next_logits(input_ids, mask, positions, cache)  # (R, V)
                tokens = sampler(logits, rows)
                if tokens is None:
                    break
                kept: list[int] = []
                for row, (prompt, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                    if token in self.end_ids:
                        finished[prompt] = Completion(tuple(written[prompt]), "eos")
                        continue
                    written[prompt].append(token)
                    if self._has_stop_string(written[prompt]):
                        finished[prompt] = Completion(tuple(written[prompt]), "stop_string")
                    elif len(written[prompt]) < max_new_tokens[prompt]:
                        kept.append(row)
                if not kept:
                    break
                if len(kept) < len(rows):
                    keep = torch.tensor(kept, device=self.device)
                    cache.batch_select_indices(keep)
                    mask, positions, tokens = mask[keep], positions[keep], tokens[keep]
                    rows = [rows[row] for row in kept]
                input_ids = tokens[:, None]
                mask = F.pad(mask, (0, 1), value=1)
                positions = positions[:, -1:] + 1
        return [
            finished.get(n) or Completion(tuple(ids), "length") for n, ids in enumerate(written)
        ]

    def to_answer(self, completion: Completion) -> Answer:
        """The completion as text without special tokens, stripped as chat templates strip it."""
        text = self.decode(completion.ids)
        if completion.finish_reason == "stop_string":
            starts = [at for stop in self.stop_strings if (at := text.find(stop)) >= 0]
            return Answer(text[: min(starts, default=len(text))].strip(), True)
        # A cut answer may end inside a character.
        return Answer(text.rstrip("\ufffd").strip(), completion.finish_reason == "eos")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens that are not special."""
        text = self.tokenizer.decode([i for i in ids if i not in self._special_ids])
        assert isinstance(text, str)
        return text

    def _next_logits(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache
    ) -> Tensor:
        """(R, V) logits of the next token."""
        # As a tensor: a plain 1 gives a strided slice, for which matmul copies the head per row.
        last = torch.tensor([-1], device=self.device)
        return self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits[:, -1]

    def _autocast(self) -> Any:
        if self.compute_dtype is None or self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @contextmanager
    def _layer_heartbeats(self, heartbeat: Heartbeat) -> Iterator[None]:
        """One heartbeat before each layer of the model, inside the `with` block."""
        doing = f"{self.title} reads prompts"
        layers = getattr(self.model.base_model, "layers", [])
        hooks = [layer.register_forward_pre_hook(lambda *_: heartbeat(doing)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _left_padded(self, prompts: Sequence[Sequence[int]], longest: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both (B, longest) int64."""
        ids = [[self.pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return (
            torch.tensor(ids, dtype=torch.long, device=self.device),
            torch.tensor(mask, dtype=torch.long, device=self.device),
        )

    def _has_stop_string(self, ids: Sequence[int]) -> bool:
        """Whether the newest tokens complete a stop string."""
        if not self.stop_strings:
            return False
        newest = self.tokenizer.decode(list(ids[-_STOP_STRING_TOKENS:]))
        return any(stop in newest for stop in self.stop_strings)


def sample_top_p(
    logits: Tensor, draws: Tensor, temperature: float | Tensor, top_p: float | Tensor
) -> Tensor:
    """(R,) tokens by nucleus sampling (arXiv 1904.09751); greedy at temperature 0.

    Args:
        logits: (R, V) float32.
        draws: (R,) uniform in [0, 1).
        temperature, top_p: for all rows, or (R,).

    Samples by inverse distribution over the sorted probabilities, so that the token of a row
    depends on its own logits and draw only.
    """
    count = len(logits)
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device)
    temperature = temperature.expand(count)
    top_p = torch.as_tensor(top_p, dtype=torch.float32, device=logits.device).expand(count)[:, None]
    greedy = temperature == 0
    if bool(greedy.all()):
        return logits.argmax(-1)
    probabilities = (logits / temperature.where(~greedy, 1.0)[:, None]).softmax(-1)
    values, indices = probabilities.topk(min(_TOP_CANDIDATES, probabilities.shape[-1]), dim=-1)
    if bool((values.sum(-1, keepdim=True) < top_p).any()):
        values, indices = probabilities.sort(dim=-1, descending=True)
    cumulative = cumsum(values, -1)
    # The smallest set that holds top_p: a token stays when those before it hold less.
    allowed = (cumulative - values) < top_p
    cumulative = cumsum(torch.where(allowed, values, 0.0), -1)
    target = draws[:, None] * cumulative[:, -1:]
    # Rounding may put the target at the very end: then the last token of the set is taken.
    slot = torch.searchsorted(cumulative, target, right=True)
    slot = slot.clamp(max=values.shape[-1] - 1).minimum(allowed.sum(-1, keepdim=True) - 1)
    tokens = indices.gather(-1, slot).squeeze(-1)
    return tokens.where(~greedy, logits.argmax(-1)) if bool(greedy.any()) else tokens
