"""Owns how far logits are apart: the probe, the measures, and what a type allows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer

from engine.events import CheckDone
from engine.export.parity_texts import PROSE
from engine.gguf_types import GgufType

LOGIT_TOKENS = 128
"""Tokens of each probe text that logits are compared on."""
F32_LOGITS = 1e-3
"""Most that a logit of an f32 file may differ from transformers'."""


def probe_sequences(folder: Path, config: dict[str, Any]) -> list[list[int]]:
    """Token ids of the probe texts, cut to what the model's context holds."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    most = min(LOGIT_TOKENS, config["max_position_embeddings"])
    lists = [backend.encode(text).ids[:most] for text in PROSE]
    return [ids for ids in lists if len(ids) > 1]


def compare_logits(
    ours: np.ndarray, theirs: np.ndarray, sequences: list[list[int]]
) -> dict[str, float]:
    """Differences of two (positions, vocabulary) arrays: largest, mean, top-1 agreement, mean
    KL(ours || theirs) in nats, and by what share the perplexity of the texts rises."""
    largest = mean = kl = 0.0
    agree = 0
    texts = np.concatenate([np.array([*ids[1:], -1]) for ids in sequences])
    ours_nats = theirs_nats = 0.0
    for start in range(0, len(ours), 64):
        a = torch.from_numpy(ours[start : start + 64])
        b = torch.from_numpy(theirs[start : start + 64])
        off = (a - b).abs()
        largest = max(largest, off.max().item())
        mean += off.double().sum().item()
        agree += int((a.argmax(-1) == b.argmax(-1)).sum())
        a, b = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += (a.exp() * (a - b)).sum().item()
        labels = torch.from_numpy(texts[start : start + 64])
        known = labels >= 0
        chosen = labels.clamp(min=0)[:, None]
        ours_nats -= a.gather(1, chosen)[:, 0][known].sum().item()
        theirs_nats -= b.gather(1, chosen)[:, 0][known].sum().item()
    known_count = int((texts >= 0).sum())
    return {
        "largest": largest,
        "mean": mean / ours.size,
        "top1": agree / len(ours),
        "kl": max(0.0, kl / len(ours)),
        "perplexity": math.expm1((theirs_nats - ours_nats) / known_count),
        "positions": float(len(ours)),
    }


def judge_logits(row: CheckDone, measured: dict[str, float], kind: GgufType | None) -> CheckDone:
    """The row with what was measured, held against what the type allows (None: it isn't known)."""
    told = (
        f"largest difference {measured['largest']:.2g}, mean {measured['mean']:.2g}, "
        f"top-1 {measured['top1']:.1%}, KL {measured['kl']:.1e}"
    )
    detail = (
        f"over {measured['positions']:,.0f} positions of prose, code and JSON; "
        f"perplexity {measured['perplexity']:+.2%}"
    )
    if kind is None:
        return replace(row, verdict="warn", value=told, detail=detail, number=measured["kl"])
    if not all(map(math.isfinite, measured.values())):
        return replace(row, verdict="fail", value=told, detail=detail)
    holds = (
        measured["largest"] <= F32_LOGITS
        if kind.name == "f32"
        else measured["kl"] <= kind.kl
        and measured["top1"] >= kind.top1
        and measured["perplexity"] <= kind.perplexity
    )
    # The tensors were compared by themselves: a little more than usual is the type's doing in this
    # model, but a file that says nothing like its model has something else wrong.
    verdict = "pass" if holds else "fail" if measured["kl"] > 10 * kind.kl else "warn"
    return replace(row, verdict=verdict, value=told, detail=detail, number=measured["kl"])


def logit_bound(kind: GgufType) -> str:
    """What a type allows, as text."""
    if kind.name == "f32":
        return f"every logit within {F32_LOGITS:g}"
    return f"{kind.name}: KL at most {kind.kl:g}, top-1 at least {kind.top1:.0%}"
