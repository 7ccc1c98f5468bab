"""Read an expert's config.json: what this program decides is taken out, limits are read from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.distill.teacher.quiet import quiet_transformers
from engine.errors import GladiusError
from engine.experts.gguf_source import GGUFExpert

_OURS = ("attn_implementation", "experts_implementation", "attn_implementation_internal")
"""Settings that choose which code runs (even a kernel from the Hub): never taken from a file."""
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
"""Names of the context length, the usual one first."""
_OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "data2vec-text", "xmod")
"""Their position tables begin with rows that are not positions."""


def read_config(path: Path) -> PreTrainedConfig:
    """The config of an expert's folder. The attention implementation is left to transformers.

    Raises OSError, ValueError, KeyError or TypeError if it can't be read.
    """
    with quiet_transformers():
        values, _ = PreTrainedConfig.get_config_dict(path, local_files_only=True)
        values = _without_code(values)
        kind = values.get("model_type")
        if kind in CONFIG_MAPPING:
            return CONFIG_MAPPING[kind].from_dict(values)
        # Old configs name no type: transformers guesses it.
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def model_type(path: Path) -> Any:
    """The architecture that an expert's config.json names; None if it names none."""
    values, _ = PreTrainedConfig.get_config_dict(path, local_files_only=True)
    return values.get("model_type")


def _without_code(values: Any, depth: int = 0) -> Any:
    """The config without settings that choose code, at any depth."""
    if not isinstance(values, dict) or depth > 8:
        return values
    return {
        key: _without_code(value, depth + 1)
        for key, value in values.items()
        if str(key).lstrip("_").removesuffix("_internal") not in _OURS and key != "auto_map"
    }


def context_limit(config: PreTrainedConfig) -> int | None:
    """Tokens that the model reads at most; None where nothing limits them.

    A model with rotary positions runs beyond its context, but was not trained to.
    """
    text = config.get_text_config(decoder=True)
    for name in _CONTEXTS:
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return max(1, value - 2) if text.model_type in _OFFSET_TYPES else value
    return None


def context_of(path: Path) -> int | None:
    """`context_limit` of an expert's folder or .gguf file; None where its config can't be read."""
    try:
        is_gguf = path.suffix == ".gguf"
        return context_limit(GGUFExpert(path).config() if is_gguf else read_config(path))
    except (OSError, ValueError, KeyError, TypeError, GladiusError):
        return None  # reported where the model is loaded


def embedding_rows(config: PreTrainedConfig) -> int | None:
    """Rows of the output matrix as the config has them; None if it names none."""
    value = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    return value if isinstance(value, int) and value > 0 else None
