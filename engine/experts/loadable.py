"""Check that transformers can load an expert's config, architecture and tokenizer; no weights.

Imports torch, so only worker processes import this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec, expert_path
from engine.workspace import Workspace


def check_loadable(workspace: Workspace, spec: ExpertSpec, path: Path | None = None) -> None:
    """Load the expert's config and tokenizer from `path` (default: its folder or file).

    Nothing is downloaded and no code of the model is run. Raises GladiusError if loading fails.
    """
    path = path or expert_path(workspace, spec)
    if spec.source == "gguf":
        from engine.experts.gguf_source import GGUFExpert

        expert = GGUFExpert(path)
        expert.config()
        expert.tokenizer()
        return
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an invalid config can raise anything
        raise GladiusError(
            f"{spec.name}: transformers {transformers.__version__} can't read its config "
            f"({_summary(error)}); a newer version may: pip install -U transformers"
        ) from error
    check_architecture(spec, config.model_type)
    try:
        with_bytes = Tokenizer.from_file(str(path / "tokenizer.json"))
        PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        with_bytes.encode("a 1\n")
    except Exception as error:
        raise GladiusError(
            f"{spec.name}: its tokenizer can't be loaded ({_summary(error)}); download it again or "
            "choose another model"
        ) from error


def check_architecture(spec: ExpertSpec, model_type: Any) -> None:
    """Raise GladiusError unless transformers has a causal language model of this type."""
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise GladiusError(
            f"{spec.name}: transformers {transformers.__version__} has no language model of type "
            f"{model_type!r}, and code from a repository is never run; choose another model, or: "
            "pip install -U transformers"
        )


def _summary(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
