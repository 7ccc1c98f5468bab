"""Measure the speed of processing a prompt and generating an answer, in transformers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from engine.events import CheckDone
from engine.validate.check import Check, quality_row
from engine.validate.context import CheckContext

_MAX_PROMPT_TOKENS = 512
_PROMPT_PASSES = 4
_ANSWER_TOKENS = 25


def check_speed(context: CheckContext) -> Iterator[CheckDone]:
    """Tokens per second of prompt and answer; information only."""
    prompt_speed, generation_speed, prompt_tokens = measure_speed(context)
    yield quality_row(
        "prompt_speed",
        "prompt speed",
        value=f"{prompt_speed:,.0f} tokens/s",
        meaning=f"Speed of processing a prompt of {prompt_tokens} tokens on this machine, in "
        "transformers.",
        number=prompt_speed,
    )
    yield quality_row(
        "generation_speed",
        "generation speed",
        value=f"{generation_speed:,.1f} tokens/s",
        meaning="Speed of generating a single answer on this machine, in transformers.",
        number=generation_speed,
    )


@torch.no_grad()
def measure_speed(context: CheckContext) -> tuple[float, float, int]:
    """(prompt tokens per second, generated tokens per second, tokens of the prompt), batch size 1.

    Medians over the passes and over the single steps, without the first, which warms up.
    """
    loaded = context.model
    model, device = loaded.model, loaded.device
    length = max(8, min(_MAX_PROMPT_TOKENS, loaded.context_length // 2))
    prompt = (torch.arange(length, device=device) * 37 % loaded.vocab_size)[None]  # (1, L)
    passes = []
    output: Any = None
    for _ in range(_PROMPT_PASSES):
        context.heartbeat("measuring prompt speed")
        _synchronize(device)
        began = time.perf_counter()
        output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        _synchronize(device)
        passes.append(time.perf_counter() - began)
    steps = []
    cache, token = output.past_key_values, output.logits[:, -1:].argmax(-1)
    for _ in range(min(_ANSWER_TOKENS, loaded.context_length - length)):
        context.heartbeat("measuring generation speed")
        _synchronize(device)
        began = time.perf_counter()
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        token = output.logits[:, -1:].argmax(-1)
        _synchronize(device)
        steps.append(time.perf_counter() - began)
    return length / median(passes[1:]), 1.0 / median(steps[1:]), length


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CHECK = Check(group="quality", name="generation_speed", title="generation speed", run=check_speed)
