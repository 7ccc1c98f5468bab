"""Owns the loss: chunked KL to the expert plus cross-entropy, and the same numbers for evaluation.

    L = sum_i [ alpha w_i T^2 KL(q_T,i || softmax(z_i / T)) + (1 - alpha w_i) CE(z_i, x_i) ] / D

with D the scored positions of the whole optimizer step (generalised knowledge distillation:
arXiv 2306.13649; the T^2 keeps the soft gradient's size: arXiv 1503.02531). Logits exist for one
chunk of positions at a time, and the gradient is made in the forward pass, so memory does not grow
with positions x vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.distill.teacher.soft_targets import SoftSource, SoftTargets, spans

# About 8 MB of fp32 logits stay in a processor's cache; a GPU wants larger products.
_CPU_CHUNK_ELEMENTS = 1 << 21
_GPU_CHUNK_ELEMENTS = 1 << 26
# Rows of the output matrix whose gradient is made at a time: a large one is not held twice.
_VOCABULARY_BLOCK = 4096


@dataclass(frozen=True)
class LossParts:
    """Sums over the positions of a call (0-dim float tensors)."""

    loss: Tensor
    """The numerator of L, already divided by D, with its gradient."""
    kl: Tensor
    """Sum of w_i KL_i in nats."""
    ce: Tensor
    """Sum of CE_i in nats."""
    weight: Tensor
    """Sum of w_i."""


def chunk_positions(vocab_size: int, device: torch.device, chosen: int = 0) -> int:
    """Positions of a chunk: `chosen`, or as many as suit the device."""
    if chosen:
        return chosen
    elements = _CPU_CHUNK_ELEMENTS if device.type == "cpu" else _GPU_CHUNK_ELEMENTS
    return max(256, elements // vocab_size // 64 * 64)


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    soft: SoftSource | None,
    *,
    alpha: float,
    temperature: float,
    denominator: float,
    chunk_size: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> LossParts:
    """The loss of N scored positions; `loss` carries the gradient to `hidden` and `weight`.

    Args:
        hidden: (N, H) last hidden states at the positions that predict the labels.
        weight: (V, H) the output matrix.
        labels: (N,) int64 student tokens x_i.
        soft: None (or alpha = 0) is plain cross-entropy.
        denominator: D.
        compute_dtype: of the matrix products; None: that of `hidden`.
    """
    if alpha == 0.0:
        soft = None
    loss, kl, ce, heard = _ChunkedLoss.apply(
        hidden,
        weight,
        labels,
        soft,
        alpha,
        temperature,
        denominator,
        chunk_positions(weight.shape[0], hidden.device, chunk_size),
        compute_dtype or hidden.dtype,
    )  # type: ignore[misc]
    return LossParts(loss=loss, kl=kl, ce=ce, weight=heard)


class _ChunkedLoss(torch.autograd.Function):
    """Forward makes loss and gradients, chunk by chunk; backward scales them."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        soft: SoftSource | None,
        alpha: float,
        temperature: float,
        denominator: float,
        chunk: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wants_gradient = hidden.requires_grad or weight.requires_grad
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            h = hidden.detach().to(dtype)
            w = weight.detach().to(dtype)
            grad_h = torch.empty_like(h) if wants_gradient else None
            grad_w = torch.zeros_like(weight, dtype=exact) if wants_gradient else None
            total = torch.zeros((), dtype=exact, device=hidden.device)
            kl_sum, ce_sum, heard = (torch.zeros_like(total) for _ in range(3))
            room = _Room(len(w), dtype, exact, hidden.device)
            for span, targets in _chunks(soft, len(h), chunk):
                rows = _padded(h[span])
                n = span.stop - span.start
                z = room.logits(rows, w)[:n]
                part = _chunk(z, labels[span], targets, alpha, temperature, wants_gradient)
                total += part.loss
                kl_sum += part.kl
                ce_sum += part.ce
                if targets is not None:
                    heard += targets.weight.sum()
                if grad_h is not None and grad_w is not None and part.gradient is not None:
                    g = room.gradient(part.gradient.mul_(1.0 / denominator), len(rows))
                    grad_h[span] = (g @ w)[:n]
                    for block in spans(len(w), _VOCABULARY_BLOCK):
                        if dtype == exact:
                            grad_w[block].addmm_(g[:, block].t(), rows)
                        else:
                            grad_w[block] += g[:, block].t() @ rows
        if wants_gradient:
            ctx.save_for_backward(grad_h, grad_w)
            ctx.types = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(kl_sum, ce_sum, heard)
        return total / denominator, kl_sum, ce_sum, heard

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_h, grad_w = ctx.saved_tensors
        hidden_type, weight_type = ctx.types
        scaled = (
            (grad_h * upstream).to(hidden_type),
            (grad_w * upstream).to(weight_type),
        )
        return (*scaled, None, None, None, None, None, None, None)


class _Room:
    """Memory for the logits of a chunk and for their gradient, used again by the next chunk:
    allocated anew each time, blocks of this size leave holes that nothing else fits in.

    The products' type may be narrower than that of the logits; then it has memory of its own,
    which logits and gradient share.
    """

    def __init__(
        self, vocab_size: int, dtype: torch.dtype, exact: torch.dtype, device: torch.device
    ) -> None:
        self._exact = torch.empty(0, vocab_size, dtype=exact, device=device)
        self._narrow = None if dtype == exact else self._exact.to(dtype)

    def logits(self, rows: Tensor, weight: Tensor) -> Tensor:
        """rows @ weight.t(), (n, V), from (n, H) and (V, H)."""
        n = len(rows)
        if len(self._exact) < n:
            self._exact = self._exact.new_empty(n, len(weight))
            if self._narrow is not None:
                self._narrow = self._narrow.new_empty(n, len(weight))
        z = self._exact[:n]
        if self._narrow is None:
            return torch.mm(rows, weight.t(), out=z)
        return z.copy_(torch.mm(rows, weight.t(), out=self._narrow[:n]))

    def gradient(self, gradient: Tensor, rows: int) -> Tensor:
        """(n, V) in the products' type, zeros added up to `rows`; in place of the last logits."""
        n = len(gradient)
        g = (self._exact if self._narrow is None else self._narrow)[:rows]
        if g.data_ptr() != gradient.data_ptr():
            g[:n] = gradient
        g[n:] = 0.0
        return g


def _padded(rows: Tensor) -> Tensor:
    """Rows of zeros added, up to a multiple of 64.

    For every new shape of a bf16 product a CPU compiles a kernel and keeps about 2 MB; scored
    positions come in any number.
    """
    lacking = -len(rows) % 64
    return F.pad(rows, (0, 0, 0, lacking)) if lacking else rows


def _chunks(
    soft: SoftSource | None, count: int, size: int
) -> Iterator[tuple[slice, SoftTargets | None]]:
    if soft is not None:
        return iter(soft.chunks(size))
    return ((span, None) for span in spans(count, size))


@dataclass(frozen=True)
class _Part:
    loss: Tensor
    kl: Tensor
    ce: Tensor
    gradient: Tensor | None


def _chunk(
    z: Tensor,
    labels: Tensor,
    soft: SoftTargets | None,
    alpha: float,
    temperature: float,
    wants_gradient: bool,
) -> _Part:
    """Loss sums of a chunk and d loss / d z, (n, V); `z` (n, V) is overwritten.

    d/dz of the soft term is alpha w T (softmax(z / T) - q_T): T^2 / T.
    """
    each = torch.arange(len(z), device=z.device)
    z -= z.amax(1, keepdim=True)
    z_label = z[each, labels]
    if soft is None:
        p = z.exp_()
        total = p.sum(1)
        ce = total.log() - z_label
        if wants_gradient:
            p *= (1.0 / total)[:, None]
            p[each, labels] -= 1.0
        ce_sum = ce.sum()
        return _Part(ce_sum, torch.zeros_like(ce_sum), ce_sum, p if wants_gradient else None)

    w = soft.weight.to(z.dtype)
    t = temperature
    # sum of q_T z / T, before z is overwritten
    if soft.dense is not None:
        dense = soft.dense.to(z.dtype)
        expected = (dense * z).sum(1) / t
        ids = mass = None
    else:
        assert soft.ids is not None and soft.mass is not None
        dense = None
        ids, mass = soft.ids, soft.mass.to(z.dtype)
        expected = (mass * z.gather(1, ids)).sum(1) / t
    if t == 1.0:
        p_t = z.exp_()
        total_t = total = p_t.sum(1)
        hard = None
    elif t == 2.0:
        # e^z is the square of e^(z/2): one exponential serves both
        p_t = z.mul_(0.5).exp_()
        total_t = p_t.sum(1)
        hard = p_t * p_t
        total = hard.sum(1)
    else:
        hard = z.exp()
        total = hard.sum(1)
        p_t = z.mul_(1.0 / t).exp_()
        total_t = p_t.sum(1)
    ce = total.log() - z_label
    kl = total_t.log() - expected - soft.entropy.to(z.dtype)
    kl = torch.where(w > 0, kl, 0.0)
    share = alpha * w
    hard_scale = (1.0 - share) * soft.text_weight
    loss = (share * (t * t) * kl + hard_scale * ce).sum()
    if wants_gradient:
        soft_scale = share * t
        if hard is None:
            p_t *= ((soft_scale + hard_scale) / total)[:, None]
        else:
            p_t *= (soft_scale / total_t)[:, None]
            p_t.addcmul_(hard, (hard_scale / total)[:, None])
        if dense is not None:
            p_t.addcmul_(dense, soft_scale[:, None], value=-1.0)
        else:
            assert ids is not None and mass is not None
            p_t.scatter_add_(1, ids, mass * -soft_scale[:, None])
        p_t[each, labels] -= hard_scale
    return _Part(loss, (w * kl).sum(), ce.sum(), p_t if wants_gradient else None)


@dataclass(frozen=True)
class PositionScores:
    """What evaluation wants of the positions in `span`, (n,) tensors on the CPU."""

    span: slice
    ce: Tensor
    kl: Tensor
    """KL(q_T || p_T) in nats; 0 where there is no soft target."""
    best: Tensor
    """The student's most probable token."""


@torch.no_grad()
def score_positions(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    soft: SoftSource | None,
    *,
    temperature: float,
    chunk_size: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> Iterator[PositionScores]:
    """Cross-entropy, KL and arg max of positions, in chunks; shapes as in `distillation_loss`."""
    dtype = compute_dtype or hidden.dtype
    h, w = hidden.to(dtype), weight.to(dtype)
    chunk = chunk_positions(weight.shape[0], hidden.device, chunk_size)
    for span, part in _chunks(soft, len(h), chunk):
        z = (_padded(h[span]) @ w.t())[: span.stop - span.start].float()
        best = z.argmax(1)
        log_p = z.log_softmax(1)
        ce = -log_p.gather(1, labels[span, None])[:, 0]
        kl = torch.zeros_like(ce)
        if part is not None:
            log_pt = log_p if temperature == 1.0 else (z / temperature).log_softmax(1)
            if part.dense is not None:
                expected = (part.dense * log_pt).sum(1)
            else:
                assert part.ids is not None and part.mass is not None
                expected = (part.mass * log_pt.gather(1, part.ids)).sum(1)
            kl = torch.where(part.weight > 0, -part.entropy - expected, 0.0)
        yield PositionScores(span=span, ce=ce.cpu(), kl=kl.cpu(), best=best.cpu())
