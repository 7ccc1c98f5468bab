"""Map a Llama model's tensors to GGUF and encode them: names, head permutation, ggml types."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from engine.errors import GladiusError
from engine.export.weights import EMBEDDING, Weights, head_dim, num_kv_heads

CHUNK_WEIGHTS = 1 << 18
"""Weights that are encoded or compared together: the results stay in the processor's cache."""
_F16_OVERFLOW = 65520.0
"""The smallest value that f16 rounds to infinity; below it, f16 rounds to 65,504."""
_LAYER_NAMES = (
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
"""(name in transformers, name in GGUF) of the tensors of one layer."""
_GGML_TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
}
_LOSSLESS = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}


@dataclass(frozen=True)
class TensorMapping:
    """One tensor of the model and its name in the GGUF file."""

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    """Rows first, as in torch."""
    permuted_heads: int = 0
    """Number of heads whose rows are permuted (see `permute`); 0: the rows keep their order."""

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def map_tensors(weights: Weights) -> list[TensorMapping]:
    """The tensors of the GGUF file, in file order.

    A tied output matrix is left out: llama.cpp then uses the embedding.

    Raises GladiusError when a tensor is missing, unexpected, or has the wrong shape.
    """
    config = weights.config
    mappings = _expected_tensors(config)
    for mapping in mappings:
        shape = weights.shapes.get(mapping.hf_name)
        if shape != mapping.shape:
            found = "is missing" if shape is None else f"has the shape {list(shape)}"
            raise GladiusError(
                f"{weights.folder}: {mapping.hf_name} {found}, and config.json requires the shape "
                f"{list(mapping.shape)}; save the model again"
            )
    known = {mapping.hf_name for mapping in mappings} | {"lm_head.weight"}
    if unexpected := sorted(set(weights.shapes) - known):
        raise GladiusError(
            f"{weights.folder} contains {unexpected[0]}, which a Llama model does not have; only "
            "plain Llama models can be exported"
        )
    return mappings


def _expected_tensors(config: dict) -> list[TensorMapping]:
    heads, kv_heads = config["num_attention_heads"], num_kv_heads(config)
    hidden, intermediate = config["hidden_size"], config["intermediate_size"]
    size = head_dim(config)
    shapes = {
        "attn_q": (heads * size, hidden),
        "attn_k": (kv_heads * size, hidden),
        "attn_v": (kv_heads * size, hidden),
        "attn_output": (hidden, heads * size),
        "ffn_gate": (intermediate, hidden),
        "ffn_up": (intermediate, hidden),
        "ffn_down": (hidden, intermediate),
    }
    permuted = {"attn_q": heads, "attn_k": kv_heads}
    vocabulary = (config["vocab_size"], hidden)
    mappings = [TensorMapping(EMBEDDING, "token_embd.weight", vocabulary)]
    for layer in range(config["num_hidden_layers"]):
        mappings += [
            TensorMapping(
                hf_name=f"model.layers.{layer}.{hf_name}.weight",
                gguf_name=f"blk.{layer}.{name}.weight",
                shape=shapes.get(name, (hidden,)),
                permuted_heads=permuted.get(name, 0),
            )
            for hf_name, name in _LAYER_NAMES
        ]
    mappings.append(TensorMapping("model.norm.weight", "output_norm.weight", (hidden,)))
    if not config.get("tie_word_embeddings"):
        mappings.append(TensorMapping("lm_head.weight", "output.weight", vocabulary))
    return mappings


def count_parameters(weights: Weights) -> int:
    """Parameters of the model; a tied output matrix counts once."""
    return sum(mapping.numel for mapping in map_tensors(weights))


def permute(tensor: Tensor, heads: int) -> Tensor:
    """Reorder each head's rows from transformers' RoPE layout (halves) to llama.cpp's (pairs)."""
    if not heads:
        return tensor
    rows, columns = tensor.shape
    return (
        tensor.reshape(heads, 2, rows // heads // 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
        .contiguous()
    )


def unpermute(tensor: Tensor, heads: int) -> Tensor:
    """Undo `permute`."""
    if not heads:
        return tensor
    rows, columns = tensor.shape
    return tensor.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, -1)


def tensor_type(mapping: TensorMapping, type_name: str) -> GGMLQuantizationType:
    """The ggml type of a tensor in a file of type `type_name`.

    Norms stay f32; a q8_0 tensor whose rows are no multiple of 32 becomes f16.
    """
    if len(mapping.shape) == 1:
        return GGMLQuantizationType.F32
    if type_name == "q8_0" and mapping.shape[-1] % 32:
        return GGMLQuantizationType.F16
    return _GGML_TYPES[type_name]


def lossless_type(dtype: torch.dtype) -> str:
    """The name of the GGUF type that stores weights of this dtype exactly."""
    return _LOSSLESS.get(dtype, GGMLQuantizationType.F32).name.lower()


def encode_tensor(tensor: Tensor, ggml_type: GGMLQuantizationType, name: str) -> Iterator[Tensor]:
    """The tensor as the file's bytes (uint8), in chunks of about CHUNK_WEIGHTS weights.

    Raises GladiusError when f16 overflows.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, CHUNK_WEIGHTS // rows.shape[-1])
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        if ggml_type == GGMLQuantizationType.BF16:
            chunk = chunk.bfloat16()
        elif ggml_type == GGMLQuantizationType.F16:
            chunk = chunk.float()  # bf16 straight to f16 takes three times as long
            if _F16_OVERFLOW <= (largest := max_abs(chunk)) < math.inf:
                raise GladiusError(
                    f"{name} has a weight of {largest:.3g}, and f16 ends at 65,504; export with "
                    "--type bf16"
                )
            chunk = chunk.half()
        elif ggml_type == GGMLQuantizationType.F32:
            chunk = chunk.float()
        else:
            chunk = quantize_q8_0(chunk.float())
        yield chunk.contiguous().view(torch.uint8)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Run torch on one thread inside the block.

    Encoding and comparing wait for memory and the disk: more threads are no faster, and on a busy
    machine they waste processor time waiting for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def max_abs(tensor: Tensor) -> float:
    """The largest absolute value; NaN if there is one.

    One pass: `isfinite` and `isinf` take many times as long.
    """
    low, high = torch.aminmax(tensor)
    return max(-low.item(), high.item(), key=lambda number: (math.isnan(number), number))


def quantize_q8_0(rows: Tensor) -> Tensor:
    """Quantize (N, K) float32 to (N, K / 32 * 34) bytes, bit for bit as llama.cpp does.

    A block is its f16 scale and 32 signed bytes. Source: ggml-quants.c, quantize_row_q8_0_ref.
    """
    blocks = rows.reshape(-1, 32)  # (N * K / 32, 32)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    scaled = blocks * inverse
    magnitude = scaled.abs()
    whole = magnitude.floor()
    # Round halves away from zero; torch.round would round them to even.
    levels = torch.sign(scaled) * (whole + (2 * (magnitude - whole)).floor())
    out = torch.empty(len(blocks), 34, dtype=torch.uint8)
    out[:, :2] = scale.half().view(torch.uint8)
    out[:, 2:] = levels.to(torch.int8).view(torch.uint8)
    return out.reshape(len(rows), -1)
