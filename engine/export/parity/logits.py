"""Compare llama.cpp's logits of a GGUF file with transformers' logits of its model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer

from engine.events import CheckDone
from engine.export import llama_runtime
from engine.export.llama_runtime import LlamaCppFailed
from engine.export.parity.comparison import Comparison, fail_check, skip_check
from engine.export.parity.reference import reference_logits
from engine.export.parity.texts import LOGIT_TEXTS
from engine.gguf_types import GgufType
from engine.programs import HOW_TO_INSTALL

MAX_TOKENS = 128
"""Tokens of each text whose logits are compared."""
F32_MAX_DIFFERENCE = 1e-3
"""Largest difference of a logit that an f32 file may have."""


@dataclass(frozen=True)
class LogitDifferences:
    """Differences between the file's logits and the model's.

    Attributes:
        largest, mean: absolute difference of a logit.
        top1: share of positions with the same most probable token.
        kl: mean KL(model || file) in nats.
        perplexity: relative increase of the texts' perplexity.
        positions: number of positions.
    """

    largest: float
    mean: float
    top1: float
    kl: float
    perplexity: float
    positions: int

    @property
    def finite(self) -> bool:
        values = (self.largest, self.mean, self.top1, self.kl, self.perplexity)
        return all(map(math.isfinite, values))


def check_logits(comparison: Comparison) -> CheckDone:
    """Check the logits against the type's bounds; skipped without llama-cpp-python."""
    file_type = comparison.type
    check = CheckDone(
        group="structural",
        name="gguf_logits",
        title="GGUF logits",
        value="",
        bound=logit_bound(file_type) if file_type else "no bound for this type",
        verdict="skip",
        meaning="llama.cpp with this file predicts what transformers predicts with the model.",
    )
    python = llama_runtime.find_python()
    if python is None:
        return skip_check(check, f"not compared: {HOW_TO_INSTALL}")
    sequences = encode_texts(comparison.folder, comparison.weights.config)

    def tick(label: str) -> Callable[[], None]:
        return lambda: comparison.report(label, 0, None)

    try:
        file_logits = llama_runtime.logits(
            python,
            comparison.path,
            sequences,
            threads=torch.get_num_threads(),
            tick=tick("computing logits with llama.cpp"),
        )
    except LlamaCppFailed as error:
        # A crash does not show that the file is wrong.
        return skip_check(check, str(error)) if error.crashed else fail_check(check, str(error))
    model_logits = reference_logits(
        comparison.folder, sequences, tick("computing logits with transformers")
    )
    return judge_logits(check, compare_logits(model_logits, file_logits, sequences), file_type)


def encode_texts(folder: Path, config: dict[str, Any]) -> list[list[int]]:
    """Token ids of the texts whose logits are compared, cut to the model's context."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    length = min(MAX_TOKENS, config["max_position_embeddings"])
    sequences = [backend.encode(text).ids[:length] for text in LOGIT_TEXTS]
    return [ids for ids in sequences if len(ids) > 1]


def compare_logits(
    model_logits: np.ndarray, file_logits: np.ndarray, sequences: list[list[int]]
) -> LogitDifferences:
    """Measure the differences of two (N, V) arrays over the positions of all sequences."""
    largest = total = kl = 0.0
    agreeing = 0
    # (N,) the next token at each position; -1 at the end of a sequence.
    next_tokens = np.concatenate([np.array([*ids[1:], -1]) for ids in sequences])
    model_nats = file_nats = 0.0
    for start in range(0, len(model_logits), 64):
        a = torch.from_numpy(model_logits[start : start + 64])  # (n, V)
        b = torch.from_numpy(file_logits[start : start + 64])  # (n, V)
        difference = (a - b).abs()
        largest = max(largest, difference.max().item())
        total += difference.double().sum().item()
        agreeing += int((a.argmax(-1) == b.argmax(-1)).sum())
        a, b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += (a.exp() * (a - b)).sum().item()
        labels = torch.from_numpy(next_tokens[start : start + 64])  # (n,)
        known = labels >= 0
        index = labels.clamp(min=0)[:, None]
        model_nats -= a.gather(1, index)[:, 0][known].sum().item()
        file_nats -= b.gather(1, index)[:, 0][known].sum().item()
    known_count = int((next_tokens >= 0).sum())
    return LogitDifferences(
        largest=largest,
        mean=total / model_logits.size,
        top1=agreeing / len(model_logits),
        kl=max(0.0, kl / len(model_logits)),
        perplexity=math.expm1((file_nats - model_nats) / known_count),
        positions=len(model_logits),
    )


def judge_logits(
    check: CheckDone, differences: LogitDifferences, file_type: GgufType | None
) -> CheckDone:
    """The check with the differences, judged by the type's bounds (None: unknown type)."""
    value = (
        f"largest difference {differences.largest:.2g}, mean {differences.mean:.2g}, "
        f"top-1 {differences.top1:.1%}, KL {differences.kl:.1e}"
    )
    detail = (
        f"over {differences.positions:,} positions of prose, code and JSON; "
        f"perplexity {differences.perplexity:+.2%}"
    )
    if file_type is None:
        return replace(check, verdict="warn", value=value, detail=detail, number=differences.kl)
    if not differences.finite:
        return replace(check, verdict="fail", value=value, detail=detail)
    if file_type.name == "f32":
        within = differences.largest <= F32_MAX_DIFFERENCE
    else:
        within = (
            differences.kl <= file_type.kl
            and differences.top1 >= file_type.top1
            and differences.perplexity <= file_type.perplexity
        )
    # The tensors have been compared already. A little more loss than usual comes from quantizing
    # this model; a KL ten times the bound means that something else is wrong with the file.
    verdict = "pass" if within else "fail" if differences.kl > 10 * file_type.kl else "warn"
    return replace(check, verdict=verdict, value=value, detail=detail, number=differences.kl)


def logit_bound(file_type: GgufType) -> str:
    """The bounds of a type, as text."""
    if file_type.name == "f32":
        return f"every logit within {F32_MAX_DIFFERENCE:g}"
    return f"{file_type.name}: KL at most {file_type.kl:g}, top-1 at least {file_type.top1:.0%}"
