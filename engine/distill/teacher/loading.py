"""Load an expert from its folder or GGUF file: tokenizer and weights, checked and frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from engine.distill.teacher.teacher import Teacher
from engine.errors import GladiusError, MissingError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.registry import ExpertSpec

_TRICKY_TEXTS = (
    "  two spaces, then\ta tab\r\n\r\nand\n\n\nlines 1234567 3.14 don't WE'LL",
    "naïve café — e\u0301 🙂👩‍👩‍👧 漢字かな ไทย العربية \u00a0\u200b",
    "def f(x):\n        return x ** 2  # ▁ Ġ <s> x </s>\n",
)
"""Texts that a wrongly rebuilt tokenizer encodes differently."""


def load_tokenizer(path: Path, spec: ExpertSpec) -> PreTrainedTokenizerFast:
    """The expert's tokenizer, exactly as in its tokenizer.json (or GGUF file).

    AutoTokenizer is not used: for some classes transformers 5 rebuilds the tokenizer in a form that
    encodes differently.

    Raises:
        MissingError: there is no tokenizer.json.
        GladiusError: the file is broken, or the loaded tokenizer encodes differently from it.
    """
    if path.suffix == ".gguf":
        return GGUFExpert(path).tokenizer()
    file = path / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"expert {spec.name} has no tokenizer.json in {path}; download it again, or save a "
            "fast tokenizer there"
        )
    try:
        with quiet_transformers():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        reference = Tokenizer.from_file(str(file))
    except Exception as error:  # a broken file can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GladiusError(
            f"expert {spec.name}: {file} is not a readable tokenizer ({why}); "
            f"download it again: gladius_train download {spec.name} --force"
        ) from error
    for text in _TRICKY_TEXTS:
        if tokenizer.encode(text) != reference.encode(text).ids:
            raise GladiusError(
                f"expert {spec.name}: the loaded tokenizer disagrees with {file} on {text!r}; "
                "report this with the versions of transformers and tokenizers"
            )
    return tokenizer


def load_teacher(
    path: Path,
    spec: ExpertSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> Teacher:
    """Load an expert from its folder (safetensors only, no remote code) or .gguf file.

    Raises:
        MissingError: there is nothing to load.
        GladiusError: the files cannot be loaded.
    """
    if not path.exists():
        raise MissingError(
            f"expert {spec.name} is not in {path}; run: gladius_train download {spec.name}"
        )
    heartbeat(f"loading {spec.title}")
    tokenizer = load_tokenizer(path, spec)
    model = _load_gguf(path, dtype) if path.suffix == ".gguf" else _load_folder(path, spec, dtype)
    heartbeat(f"loading {spec.title}")
    model.to(device).eval().requires_grad_(False)
    return Teacher(model, tokenizer, spec)


def _load_folder(path: Path, spec: ExpertSpec, dtype: torch.dtype) -> Any:
    if not any(path.glob("*.safetensors")):
        raise MissingError(
            f"expert {spec.name} has no .safetensors weights in {path} (.bin and .pt files are "
            f"never loaded); run: gladius_train download {spec.name}"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, **options)
            if getattr(config, "attn_logit_softcapping", None):
                options["attn_implementation"] = "eager"  # the fused kernels have no cap
            return AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, use_safetensors=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise GladiusError(
            f"expert {spec.name} can't be loaded from {path} ({why}); "
            f"download it again: gladius_train download {spec.name} --force"
        ) from error


def _load_gguf(path: Path, dtype: torch.dtype) -> Any:
    expert = GGUFExpert(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(expert.config(), dtype=dtype)
    weights = {name: tensor.to(dtype) for name, tensor in expert.tensors()}
    # Buffers (RoPE frequencies) are not in the file: compute them again off the meta device.
    model.to_empty(device="cpu")
    missing = set(model.load_state_dict(weights, strict=False, assign=True).missing_keys)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if missing - {"lm_head.weight"}:
        raise GladiusError(f"{path} has no tensor {sorted(missing)[0]}; download the file again")
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep progress bars and warnings of transformers out of the worker's log."""
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


def expert_digest(path: Path, spec: ExpertSpec) -> str:
    """Identifies the content of an expert's files without reading its weights.

    From the manifest of the download; without one, from names, sizes and times of the files.
    """
    digest = hashlib.sha256(repr((spec.end_tokens, spec.chat, spec.trust_end)).encode())
    manifest = path / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
    else:
        files = [path] if path.is_file() else sorted(path.glob("*"))
        for file in files:
            stat = file.stat()
            digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
