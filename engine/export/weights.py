"""Read a Llama model folder: config.json, and the safetensors files one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import GladiusError, MissingError
from engine.small_files import Damaged, read_json

EMBEDDING = "model.embed_tokens.weight"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weights:
    """The tensors of a model folder: one safetensors file, or shards with an index.

    Attributes:
        folder: the model folder.
        config: config.json.
        shapes, dtypes: by tensor name, as stored.
    """

    def __init__(self, folder: Path) -> None:
        """Raises MissingError for a missing file, GladiusError for a damaged one."""
        self.folder = folder
        self.config = read_config(folder)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for path, names in _weight_files(folder).items():
            with _open(path) as file:
                stored = set(file.keys())
                for name in sorted(stored if names is None else names):
                    if name not in stored:
                        raise GladiusError(
                            f"{path} does not contain the tensor {name} that the index assigns to "
                            "it; save the model again"
                        )
                    part = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = _dtype(part.get_dtype(), name, path)

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory.

        The file is opened for each tensor: an open file keeps every page that was ever read.
        """
        path = self._files[name]
        with _open(path) as file:
            try:
                return file.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise _damaged(path, error) from error

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the matrices."""
        return self.dtypes[EMBEDDING]


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises MissingError when there is none, GladiusError when it does not describe a Llama model
    that GGUF can represent.
    """
    path = folder / "config.json"
    try:
        config = read_json(path, dict[str, Any])
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing; give the folder of a model") from error
    except Damaged as error:
        raise GladiusError(f"{error}; save the model again") from error
    if config.get("model_type") != "llama":
        raise GladiusError(
            f"{path} describes a {config.get('model_type')} model; only Llama models can be "
            "exported"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise GladiusError(f"{path} sets {key}, which the export does not support")
    if (rope_type := rope_parameters(config).get("rope_type", "default")) != "default":
        raise GladiusError(
            f"{path} uses RoPE scaling of type {rope_type}, which the export does not support"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise GladiusError(
            f"{path} uses the activation {config['hidden_act']}; the export supports only silu"
        )
    return config


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE's parameters: nested in transformers 5, at the top level in transformers 4."""
    return config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }


def head_dim(config: dict[str, Any]) -> int:
    """Dimensions of one attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def num_kv_heads(config: dict[str, Any]) -> int:
    """Key and value heads; without grouped-query attention as many as query heads."""
    return config.get("num_key_value_heads") or config["num_attention_heads"]


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files, each with the tensor names that the index assigns to it (None: all)."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        raise MissingError(f"{folder} has no weights (model.safetensors); train a model first")
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            names = files.setdefault(folder / Path(file).name, set())
            assert names is not None
            names.add(name)
    except (Damaged, KeyError, TypeError, AttributeError) as error:
        raise GladiusError(f"{index} is damaged ({error}); save the model again") from error
    for path in files:
        if not path.is_file():
            raise MissingError(f"{path} is missing, but the index lists it; save the model again")
    return files


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing; save the model again") from error
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> GladiusError:
    reason = " ".join(str(error).split())
    return GladiusError(f"{path} is damaged ({reason}); save the model again")


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise GladiusError(f"{path}: {tensor} has dtype {name}; only f32, f16 and bf16 work")
    return _DTYPES[name]
