"""Load an expert from its folder or GGUF file: tokenizer and weights, checked and frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from engine.distill.teacher.model_config import read_config
from engine.distill.teacher.quiet import quiet_transformers
from engine.distill.teacher.teacher import Teacher
from engine.distill.teacher.tokenizer import load_tokenizer
from engine.errors import GladiusError, MissingError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.registry import ExpertSpec


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
    teacher = Teacher(model, tokenizer, spec)
    teacher.check_head()
    return teacher


def _load_folder(path: Path, spec: ExpertSpec, dtype: torch.dtype) -> Any:
    if not any(path.glob("*.safetensors")):
        raise MissingError(
            f"expert {spec.name} has no .safetensors weights in {path} (.bin and .pt files are "
            f"never loaded); run: gladius_train download {spec.name}"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            config = read_config(path)
            if getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None):
                options["attn_implementation"] = "eager"  # the fused kernels have no cap
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:  # a broken folder can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GladiusError(
            f"expert {spec.name} can't be loaded from {path} ({why}); {_remedy(spec)}"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise GladiusError(
            f"expert {spec.name}: its weights in {path} have no tensor {missing[0]} "
            f"({len(missing)} are missing); {_remedy(spec)}"
        )
    return model


def _remedy(spec: ExpertSpec) -> str:
    if spec.source in ("folder", "gguf"):
        return f"correct the files in {spec.repo}, or choose another model"
    return f"download it again: gladius_train download {spec.name} --force"


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
