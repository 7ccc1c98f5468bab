"""Load the model under validation: with plain transformers from its folder, or from a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from engine import hardware
from engine.distill.device import turn_off_cudnn_attention
from engine.distill.teacher.loading import quiet_transformers
from engine.experts.gguf_source import GGUFExpert

_LARGE_MODEL = 300_000_000
"""Parameters above which fp32 on a CPU is too slow and too large, if the CPU has bf16."""
_SMALL_MODEL = 50_000_000
"""Parameters below which one thread is fastest: threads would mostly wait for each other."""
_DEFAULT_CONTEXT = 2048


@dataclass
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        model: a causal language model of transformers, in eval mode, on its device.
        tokenizer: loaded by AutoTokenizer, or rebuilt from a GGUF file.
        dtype: of the weights and the matrix products.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        """Maximum number of tokens."""
        length = getattr(self.model.config, "max_position_embeddings", 0)
        return int(length or _DEFAULT_CONTEXT)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.model.config.vocab_size)


@dataclass(frozen=True)
class LoadResult:
    """A loaded model, or why it was not loaded.

    Attributes:
        loaded: None when the model could not be loaded completely.
        value: what was loaded, or the first problem.
        findings: a line for each tensor that does not fit.
    """

    loaded: LoadedModel | None
    value: str
    findings: list[str] = field(default_factory=list)


def set_threads(parameters: int) -> None:
    """Use one thread for a small model, else all physical cores."""
    torch.set_num_threads(1 if parameters < _SMALL_MODEL else hardware.physical_cores())


def load_folder(folder: Path) -> LoadResult:
    """Load a model folder with plain transformers: no remote code, no pickle.

    Raises any error of the libraries for a broken file.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet_transformers():
        result: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    model, info = result
    # transformers initializes missing tensors at random without an error.
    findings = [
        f"{name}: missing from the files, initialized at random" for name in info["missing_keys"]
    ]
    findings += [f"{name}: in the files, but not in the model" for name in info["unexpected_keys"]]
    findings += [f"{item[0]}: has the wrong shape" for item in info["mismatched_keys"]]
    findings += [str(message) for message in info.get("error_msgs", ())]
    if findings:
        return LoadResult(None, f"{len(findings)} tensors do not fit: {findings[0]}", findings)
    value = f"{type(model).__name__}, {_count(model):,} parameters, {_name(model.dtype)}"
    return LoadResult(_ready(model, tokenizer), value)


def load_gguf(path: Path) -> LoadResult:
    """Load a GGUF file, dequantized, with the tokenizer that the file describes.

    Raises any error of the libraries for a broken file.
    """
    expert = GGUFExpert(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(expert.config(), dtype=torch.float32)
    state_dict = dict(expert.tensors())
    model.to_empty(device="cpu")
    keys = model.load_state_dict(state_dict, strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    tokenizer = expert.tokenizer()
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    findings = [f"{name}: missing from the file" for name in sorted(set(keys.missing_keys) - tied)]
    if findings:
        return LoadResult(None, findings[0], findings)
    value = f"{type(model).__name__}, {_count(model):,} parameters, dequantized"
    return LoadResult(_ready(model, tokenizer), value)


def _ready(model: Any, tokenizer: Any) -> LoadedModel:
    """On the GPU if there is one, in a dtype that is fast on the device."""
    if torch.cuda.is_available():
        turn_off_cudnn_attention()
        device = "cuda"
        use_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device = "cpu"
        use_bf16 = _count(model) > _LARGE_MODEL and hardware.has_bf16()
    dtype = torch.bfloat16 if use_bf16 else torch.float32
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, dtype)


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
