"""Owns reading a Llama model's safetensors a tensor at a time, and each tensor's place and form in
a GGUF file: name, permutation, type.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import GladiusError, MissingError

PIECE = 1 << 18
"""Weights that are worked on together: what is made of them stays in a processor's cache."""
_HALF_ENDS = 65520.0
"""The least number that f16 has no room for: below it, it is rounded to 65,504."""
_BLOCK = (
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
)
_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
_SHORTER = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class Placed:
    """A tensor of the model, and what it becomes."""

    source: str
    name: str
    shape: tuple[int, ...]
    """Rows first, as torch has it."""
    heads: int = 0
    """Heads by which rows are permuted; 0: they stay."""


class Weights:
    """The tensors of a model folder: one file, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingError for a file that isn't there, GladiusError for one that is damaged."""
        self.folder = folder
        self.config = read_config(folder)
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for path, names in _files(folder).items():
            with _opened(path) as file:
                there = set(file.keys())
                for name in sorted(there if names is None else names):
                    if name not in there:
                        raise GladiusError(
                            f"{path} holds no tensor {name}, which the index says it does; "
                            "save the model again"
                        )
                    part = file.get_slice(name)
                    self._files[name] = path
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = _dtype(part.get_dtype(), name, path)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own as long as it is held.

        The file is opened for each: one that stays open keeps all pages that were ever read.
        """
        path = self._files[name]
        with _opened(path) as file:
            try:
                return file.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise _damaged(path, error) from error

    def placed(self) -> list[Placed]:
        """What goes into the file, in its order; GladiusError when a tensor lacks or is too much.

        A tied output matrix is left out: llama.cpp then takes the embedding.
        """
        config = self.config
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads") or heads
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        size = head_dim(config)
        shapes = {
            "attn_q": (heads * size, hidden),
            "attn_k": (kv_heads * size, hidden),
            "attn_v": (kv_heads * size, hidden),
            "attn_output": (hidden, heads * size),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        permuted = {"attn_q": heads, "attn_k": kv_heads}
        vocabulary = (config["vocab_size"], hidden)
        found = [Placed("model.embed_tokens.weight", "token_embd.weight", vocabulary)]
        for layer in range(config["num_hidden_layers"]):
            found += [
                Placed(
                    f"model.layers.{layer}.{source}.weight",
                    f"blk.{layer}.{name}.weight",
                    shapes.get(name, (hidden,)),
                    permuted.get(name, 0),
                )
                for source, name in _BLOCK
            ]
        found.append(Placed("model.norm.weight", "output_norm.weight", (hidden,)))
        if not config.get("tie_word_embeddings"):
            found.append(Placed("lm_head.weight", "output.weight", vocabulary))
        known = {tensor.source for tensor in found} | {"lm_head.weight"}
        for tensor in found:
            shape = self.shapes.get(tensor.source)
            if shape != tensor.shape:
                what = "lacks" if shape is None else f"has the shape {list(shape)} for"
                raise GladiusError(
                    f"the model in {self.folder} {what} {tensor.source}, which config.json makes "
                    f"{list(tensor.shape)}; save the model again"
                )
        if odd := sorted(set(self.shapes) - known):
            raise GladiusError(
                f"{self.folder} holds {odd[0]}, which no Llama model has in GGUF; only plain "
                "Llama students can be exported"
            )
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices."""
        return self.dtypes["model.embed_tokens.weight"]


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, checked to be a Llama model's that GGUF can hold."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing; give a model's folder") from error
    except ValueError as error:
        raise GladiusError(f"{path} is damaged ({error}); save the model again") from error
    if config.get("model_type") != "llama":
        raise GladiusError(
            f"{path} describes a {config.get('model_type')} model; only Llama students can be "
            "exported"
        )
    for key in ("attention_bias", "mlp_bias"):
        if config.get(key):
            raise GladiusError(f"{path} has {key}, which the export doesn't know")
    if (kind := rope(config).get("rope_type", "default")) != "default":
        raise GladiusError(f"{path} has RoPE scaled by {kind}, which the export doesn't know")
    if config.get("hidden_act", "silu") != "silu":
        raise GladiusError(f"{path} has the activation {config['hidden_act']}, not silu")
    return config


def rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE's parameters: transformers 5 has them in a table of their own, 4 had them outside."""
    return config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }


def head_dim(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def permute(tensor: Tensor, heads: int) -> Tensor:
    """Rows from transformers' order (halves of a head) to llama.cpp's (pairs), per head."""
    if not heads:
        return tensor
    rows, columns = tensor.shape
    return (
        tensor.reshape(heads, 2, rows // heads // 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
        .contiguous()
    )


def restore(tensor: Tensor, heads: int) -> Tensor:
    """The other way round."""
    if not heads:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, -1)


def type_of(tensor: Placed, wanted: str) -> GGMLQuantizationType:
    """The type that a tensor gets: norms stay f32, rows that don't fit blocks become f16."""
    if len(tensor.shape) == 1:
        return GGMLQuantizationType.F32
    if wanted == "q8_0" and tensor.shape[-1] % 32:
        return GGMLQuantizationType.F16
    return _TYPES[wanted]


def lossless_type(dtype: torch.dtype) -> str:
    """The type that holds such weights exactly."""
    return _SHORTER.get(dtype, GGMLQuantizationType.F32).name.lower()


def converted(tensor: Tensor, wanted: GGMLQuantizationType, name: str) -> Iterator[Tensor]:
    """The tensor as the file's bytes (uint8), in pieces that a processor's cache holds.

    Raises GladiusError where half precision can't hold a weight.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, PIECE // rows.shape[-1])
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        if wanted == GGMLQuantizationType.BF16:
            piece = piece.bfloat16()
        elif wanted == GGMLQuantizationType.F16:
            piece = piece.float()  # from bf16 straight to f16 takes three times as long
            if _HALF_ENDS <= (most := largest(piece)) < math.inf:
                raise GladiusError(
                    f"{name} holds a weight of {most:.3g}, and f16 ends at 65,504; export with "
                    "--type bf16"
                )
            piece = piece.half()
        elif wanted == GGMLQuantizationType.F32:
            piece = piece.float()
        else:
            piece = quantize_q8_0(piece.float())
        yield piece.contiguous().view(torch.uint8)


@contextmanager
def one_thread() -> Iterator[None]:
    """Arithmetic by one thread: work that waits for memory and the disk is no quicker with more,
    and where other programs want the processors too, threads that wait for each other burn them."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def largest(tensor: Tensor) -> float:
    """Of the numbers without their signs; not a number where one of them is none.

    In one pass: `isfinite` and `isinf` take many times as long.
    """
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item(), key=lambda number: (math.isnan(number), number))


def quantize_q8_0(rows: Tensor) -> Tensor:
    """(n, k) float32 to (n, k / 32 * 34) bytes, bit for bit as llama.cpp's reference does it.

    Source: ggml-quants.c, quantize_row_q8_0_ref; a block is its f16 scale and 32 signed bytes.
    """
    blocks = rows.reshape(-1, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    scaled = blocks * inverse
    size = scaled.abs()
    whole = size.floor()
    # Halves are rounded away from zero, where torch.round takes the even number.
    levels = torch.sign(scaled) * (whole + (2 * (size - whole)).floor())
    out = torch.empty(len(blocks), 34, dtype=torch.uint8)
    out[:, :2] = scale.half().view(torch.uint8)
    out[:, 2:] = levels.to(torch.int8).view(torch.uint8)
    return out.reshape(len(rows), -1)


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files with the names that should be in each (None: whatever is)."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        raise MissingError(f"there are no weights (model.safetensors) in {folder}; train a model")
    try:
        placed: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in placed.items():
            names = files.setdefault(folder / Path(file).name, set())
            assert names is not None
            names.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GladiusError(f"{index} is damaged ({error}); save the model again") from error
    for path in files:
        if not path.is_file():
            raise MissingError(f"{path} is missing, a part of the model; save the model again")
    return files


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise MissingError(f"{path} is missing; save the model again") from error
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> GladiusError:
    why = " ".join(str(error).split())
    return GladiusError(f"{path} is damaged ({why}); save the model again")


def _dtype(name: str, tensor: str, path: Path) -> torch.dtype:
    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if name not in known:
        raise GladiusError(f"{path}: {tensor} is of type {name}; f32, f16 or bf16 is needed")
    return known[name]
