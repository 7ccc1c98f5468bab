"""Check a model's config without torch: adapters, quantised weights, and counts that its weights
can't have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

ADAPTER = "adapter_config.json"
QUANTISED_FILES = ("quantize_config.json", "quant_config.json")
"""Files in which older quantised repositories (GPTQ, AWQ) keep their settings."""
_QUANTISED_TENSORS = (
    ".qweight",
    ".qzeros",
    ".absmax",
    ".quant_map",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
)
"""Ends of the names of tensors that only quantised weights have."""

_LAYERS = re.compile(r"(num_|n_)?((hidden|encoder|decoder)_)?layers?")
_COUNT = re.compile(r"(num|n)_.*|.*_(size|dim|rank|heads|experts|layers)|vocab_size|d_model|dim")
_NO_WEIGHTS = re.compile(
    r".*(position|context|ctx|window|token_id|seq|length|chunk|theta|image|patch|audio|beams|return|block"
    r"|per_tok|frames|labels|mel).*"
)
"""Names of numbers that may be larger than the weights."""


def config_problem(config: Mapping[str, Any], elements: int, tensors: int | None) -> str | None:
    """Why a model with this config can't be an expert, in a few words; None if nothing is found.

    elements: weights in its files, or an upper bound. tensors: their number; None if unknown.
    """
    method = _quantisation(config)
    if method is not None:
        return quantised(method)
    for name, value in _counts(config):
        if value > elements:
            return f"config.json has {name} {value:,}, and the weights hold {elements:,} numbers"
        if tensors is not None and _LAYERS.fullmatch(name) and value > tensors:
            return f"config.json has {value:,} layers, and the weights have {tensors:,} tensors"
    rows, width = config.get("vocab_size"), config.get("hidden_size")
    if isinstance(rows, int) and isinstance(width, int) and rows * min(width, 64) > elements:
        return (
            f"config.json has {rows:,} tokens of size {width:,}, and the weights hold "
            f"{elements:,} numbers"
        )
    return None


def quantised(method: str) -> str:
    """The problem of quantised weights, with the remedy."""
    return f"its weights are quantised ({method}); use the repository with the original weights"


def adapter_problem(config: Mapping[str, Any]) -> str:
    """The problem of a folder that holds an adapter, with the remedy. config: of the adapter."""
    base = config.get("base_model_name_or_path")
    of = f" of {base}" if isinstance(base, str) and base.isprintable() else ""
    return f"it is an adapter{of}, not a model; merge it into its base model first"


def quantised_tensor(name: str) -> bool:
    """Whether only quantised weights have a tensor of this name."""
    return name.endswith(_QUANTISED_TENSORS)


def _quantisation(config: Mapping[str, Any]) -> str | None:
    """The quantisation method that a config names, at any depth of two; None without one."""
    nested = [part for part in config.values() if isinstance(part, Mapping)]
    for part in (config, *nested):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            return method if isinstance(method, str) and method.isprintable() else "unknown method"
    return None


def _counts(config: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Every whole number of the config that is a count or a size, at most three levels deep."""
    for name, value in config.items():
        if isinstance(value, Mapping) and depth < 3 and str(name) in _TEXT_PARTS:
            yield from _counts(value, depth + 1)
        elif type(value) is int and _COUNT.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name):
            yield name, value


_TEXT_PARTS = ("text_config", "decoder", "llm_config", "language_config")
