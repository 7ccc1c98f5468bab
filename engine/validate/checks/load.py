"""Owns loading the model that is validated: by plain transformers from its folder, or out of a GGUF
file, and the check that nothing was missing, too much or drawn anew on the way.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.validate.checks.check import listed, row, short

# Above this many parameters fp32 on a CPU is too slow and too large, where bf16 can be had.
_LARGE = 300_000_000


@dataclass
class Loaded:
    """A model that can compute.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: as AutoTokenizer reads it (rebuilt, for a GGUF file).
        dtype: of the matrix products.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2048)


@contextmanager
def quiet():
    """No progress bars and advice of transformers in the worker's log."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain data; {} where it can't be read."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where it can't be read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def load_folder(folder: Path) -> tuple[CheckDone, Loaded | None]:
    """The model as anybody loads it: no code of ours or of the model's own, no pickle."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", use_safetensors=True, output_loading_info=True, **options
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        model, info = loaded
    except Exception as error:  # the libraries raise whatever a broken file leads to
        return _loads(False, short(error), ""), None
    # What is missing was drawn at random without an error: it would load, and write noise.
    lines = [f"{name}: not in the files, drawn at random" for name in info["missing_keys"]]
    lines += [f"{name}: in the files, but in no layer" for name in info["unexpected_keys"]]
    lines += [f"{item[0]}: of another shape" for item in info["mismatched_keys"]]
    lines += [str(message) for message in info.get("error_msgs", ())]
    count = sum(p.numel() for p in model.parameters())
    value = f"{type(model).__name__}, {count:,} parameters, {str(model.dtype)[6:]}"
    if lines:
        value = f"{len(lines)} tensors do not fit: {lines[0]}"
        return _loads(False, value, listed(lines) if lines[1:] else ""), None
    return _loads(True, value, ""), _ready(model, tokenizer)


def load_gguf(path: Path) -> tuple[CheckDone, Loaded | None]:
    """The model out of a GGUF file, dequantised, with the tokenizer that the file describes."""
    try:
        expert = GGUFExpert(path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(expert.config(), dtype=torch.float32)
        weights = dict(expert.tensors())
        model.to_empty(device="cpu")
        wrong = model.load_state_dict(weights, strict=False, assign=True)
        model.tie_weights()
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        tokenizer = expert.tokenizer()
    except Exception as error:
        return _loads(False, short(error), ""), None
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    lines = [f"{name}: not in the file" for name in sorted(set(wrong.missing_keys) - tied)]
    if lines:
        return _loads(False, lines[0], listed(lines) if lines[1:] else ""), None
    count = sum(p.numel() for p in model.parameters())
    value = f"{type(model).__name__} of {count:,} parameters, dequantised"
    return _loads(True, value, ""), _ready(model, tokenizer)


def _loads(ok: bool, value: str, detail: str) -> CheckDone:
    return row(
        "structural",
        "loads",
        "loads",
        ok,
        value,
        "Plain transformers loads model and tokenizer with no code of ours, each tensor in place.",
        bound="every tensor in place",
        detail=detail,
    )


def _ready(model: Any, tokenizer: Any) -> Loaded:
    """On the GPU where there is one, in a type that is quick there."""
    count = sum(p.numel() for p in model.parameters())
    if torch.cuda.is_available():
        half = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if half else torch.float32
        device = "cuda"
    else:
        large = count > _LARGE and hardware.has_bf16()
        dtype = torch.bfloat16 if large else torch.float32
        device = "cpu"
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Loaded(model, tokenizer, dtype)
