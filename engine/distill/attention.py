"""Attention without a dense mask: causal for an expert that scores text, packed for the student.

Both are registered with transformers by name; nothing of its models is replaced.

Shapes: B rows, L length, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_CAUSAL, _PACKED = "sdpa_causal", "packed"
_FIRST_CAPABILITY = (8, 0)
"""Of CUDA: flash attention needs Ampere or newer."""
_PROBE_ERROR = 0.02
"""Largest error of the packed kernel in bf16, relative to the largest number."""


@dataclass(frozen=True)
class Segments:
    """The blocks of packed rows, and their padding, one after the other in B x L tokens.

    Attributes:
        edges: (segments + 1,) int32, where they begin, and B x L at the end.
        longest: tokens of the longest one.
    """

    edges: Tensor
    longest: int


@contextmanager
def without_mask(model: Any, length: int) -> Iterator[None]:
    """Inside the block the model attends causally, without a mask, to all earlier positions.

    For texts of at most `length` tokens that are padded on the right: no token sees the padding. A
    model with its own attention (a soft cap), or a shorter sliding window, keeps its masks.
    """
    window = getattr(model.config, "sliding_window", None)
    if model.config._attn_implementation != "sdpa" or (window is not None and window < length):
        yield
        return
    model.config._attn_implementation = _CAUSAL
    try:
        yield
    finally:
        model.config._attn_implementation = "sdpa"


def packed_inputs(model: Any, segments: Segments) -> dict[str, Any]:
    """Arguments of the model's forward pass with which it attends within the segments only.

    From then on the model has this attention: without segments it is the usual one with a mask.
    (It cannot be for one pass only: activation checkpointing calls it again in the backward pass.)
    """
    model.config._attn_implementation = _PACKED
    # Four dimensions: transformers takes it for a finished mask, and makes none.
    unused = segments.edges.new_empty(1, 1, 1, 1)
    return {"attention_mask": unused, "segments": segments}


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(B, L, H, D) attention of query (B, H, L, D) to key and value (B, G, L, D), causal within
    each segment; for transformers' `AttentionInterface`."""
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    rows, _, length, _ = query.shape
    # A kernel of its own is not on autocast's list.
    dtype = value.dtype
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
    flat = [t.transpose(1, 2).flatten(0, 1).to(dtype) for t in (query, key, value)]
    out = _kernel()(flat[0], flat[1], flat[2], segments, scaling)
    return out.unflatten(0, (rows, length)), None


# Without a function for masks: transformers makes none, and need not ask the device whether the
# positions are those of several texts.
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)
AttentionInterface.register(_PACKED, _packed_attention)
AttentionMaskInterface.register(_PACKED, sdpa_mask)

Kernel = Callable[[Tensor, Tensor, Tensor, Segments, float | None], Tensor]
"""Attention of (B x L, H, D) to (B x L, G, D), causal within each segment."""


def by_segment(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor:
    """A `Kernel` that computes one segment after the other: the reference of the others."""
    parts = []
    edges = segments.edges.tolist()
    for first, stop in pairwise(edges):
        q, k, v = (t[first:stop].transpose(0, 1)[None] for t in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key,
        value,
        segments.edges,
        segments.edges,
        segments.longest,
        segments.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _kernel() -> Kernel:
    return _varlen


def why_not_packed(device: torch.device, dtype: torch.dtype) -> str:
    """Why packed attention is not used on a device; "" if it is.

    The kernel is compared with `by_segment` there once, gradients included.
    """
    if torch.are_deterministic_algorithms_enabled():
        return "device.deterministic is set"
    return _why_not_packed(device, dtype)


@cache
def _why_not_packed(device: torch.device, dtype: torch.dtype) -> str:
    if device.type != "cuda":
        return "it needs a GPU"
    if dtype == torch.float32:
        return "it needs bf16"
    if torch.version.cuda is None or torch.cuda.get_device_capability() < _FIRST_CAPABILITY:
        return "it needs an NVIDIA GPU of the Ampere generation or newer"
    try:
        error = probe_error(_kernel(), device, dtype)
    except Exception as failure:  # an older torch, or any error of the kernel
        return f"{type(failure).__name__}: {' '.join(str(failure).split())[:120]}"
    return "" if error < _PROBE_ERROR else f"its kernel differs from the reference by {error:.2g}"


def probe_error(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> float:
    """Largest difference between a kernel and `by_segment`, of output and gradients, relative to
    the largest number."""
    edges = torch.tensor([0, 70, 71, 200, 256], dtype=torch.int32, device=device)
    segments = Segments(edges, 129)
    generator = torch.Generator().manual_seed(0)
    shapes = ((256, 4, 128), (256, 2, 128), (256, 2, 128), (256, 4, 128))
    q, k, v, grad = (
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
        for shape in shapes
    )
    found = []
    for function in (kernel, by_segment):
        out = function(q, k, v, segments, None)
        found.append([out, *torch.autograd.grad(out, (q, k, v), grad.detach())])
    pairs = list(zip(*found, strict=True))
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    return float("inf") if any(error != error for error in errors) else max(errors)
