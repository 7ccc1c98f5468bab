"""Logits of one chunk of positions at a time, in memory that is used again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.distill.teacher.soft_targets import SoftSource, SoftTargets, spans

# About 8 MB of fp32 logits stay in a processor's cache; a GPU is faster with larger products.
_CPU_CHUNK_ELEMENTS = 1 << 21
_GPU_CHUNK_ELEMENTS = 1 << 26


def chunk_positions(vocab_size: int, device: torch.device, chunk_size: int = 0) -> int:
    """Positions in a chunk: `chunk_size`, or where that is 0, as many as suit the device."""
    if chunk_size:
        return chunk_size
    elements = _CPU_CHUNK_ELEMENTS if device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    return max(256, elements // vocab_size // 64 * 64)


def target_chunks(
    targets: SoftSource | None, count: int, size: int
) -> Iterator[tuple[slice, SoftTargets | None]]:
    """Slices that cover `count` positions, about `size` at a time, with their soft targets."""
    if targets is not None:
        return iter(targets.chunks(size))
    return ((span, None) for span in spans(count, size))


def pad_rows(rows: Tensor) -> Tensor:
    """(n, H) with rows of zeros appended, up to a multiple of 64.

    For every new shape of a bf16 product a CPU compiles a kernel and keeps about 2 MB; scored
    positions come in any number.
    """
    missing = -len(rows) % 64
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


class LogitsBuffer:
    """Memory for the logits of a chunk and for their gradient, used again by the next chunk.

    Allocated for each chunk, blocks of this size would leave holes that nothing else fits into.
    Where the matrix products are of a narrower type than the logits, that type has
    separate memory, which logits and gradient share.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        compute_dtype: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """compute_dtype: of the matrix products; dtype: of the logits."""
        self._logits = torch.empty(0, vocab_size, dtype=dtype, device=device)
        self._narrow = None if compute_dtype == dtype else self._logits.to(compute_dtype)

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """hidden @ weight.t(), (n, V), from (n, H) and (V, H)."""
        n = len(hidden)
        if len(self._logits) < n:
            self._logits = self._logits.new_empty(n, len(weight))
            if self._narrow is not None:
                self._narrow = self._narrow.new_empty(n, len(weight))
        z = self._logits[:n]
        if self._narrow is None:
            return torch.mm(hidden, weight.t(), out=z)
        return z.copy_(torch.mm(hidden, weight.t(), out=self._narrow[:n]))

    def gradient(self, grad_logits: Tensor, rows: int) -> Tensor:
        """(rows, V): the gradient (n, V) in the products' type, followed by rows of zeros.

        It takes the place of the last logits.
        """
        n = len(grad_logits)
        g = (self._logits if self._narrow is None else self._narrow)[:rows]
        if g.data_ptr() != grad_logits.data_ptr():
            g[:n] = grad_logits
        g[n:] = 0.0
        return g
