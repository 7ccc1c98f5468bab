"""The training loss: a divergence from the teacher plus cross-entropy, computed in chunks.

    L = sum_i [ alpha w_i T^2 D(q_T,i, softmax(z_i / T)) + (1 - alpha w_i) CE(z_i, x_i) ] / D_n

where D is one of `divergences.DIVERGENCES` and the denominator D_n is the number of scored
positions in the optimizer step. Logits exist for one chunk of positions at a time, and the
gradient is computed in the forward pass, so memory does not grow with positions x vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.distill.teacher.soft_targets import SoftSource, spans
from engine.distill.train.divergences import DIVERGENCES, Divergence, cross_entropy
from engine.distill.train.logits import LogitsBuffer, chunk_positions, pad_rows, target_chunks

# Rows of the output matrix whose gradient is computed at a time: a large one is not held twice.
_VOCABULARY_BLOCK = 4096


@dataclass(frozen=True)
class LossParts:
    """Sums over the positions of a call (0-dim float tensors)."""

    loss: Tensor
    """The numerator of L, already divided by the denominator, with its gradient."""
    divergence: Tensor
    """Sum of w_i D_i in nats, of the divergence that is trained."""
    ce: Tensor
    """Sum of CE_i in nats."""
    teacher_weight: Tensor
    """Sum of w_i."""


def distillation_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    targets: SoftSource | None,
    *,
    alpha: float,
    temperature: float,
    denominator: float,
    divergence: str = "forward_kl",
    chunk_size: int = 0,
    compute_dtype: torch.dtype | None = None,
) -> LossParts:
    """The loss of N scored positions; `loss` carries the gradient to `hidden` and `weight`.

    Args:
        hidden: (N, H) last hidden states at the positions that predict the labels.
        weight: (V, H) the output matrix.
        labels: (N,) int64 student tokens x_i.
        targets: soft targets of the N positions; None (or alpha = 0) is plain cross-entropy.
        denominator: scored positions of the optimizer step.
        divergence: a name in `divergences.DIVERGENCES`.
        chunk_size: positions whose logits exist at a time; 0: chosen from the vocabulary's size.
        compute_dtype: of the matrix products; None: that of `hidden`.
    """
    options = _Options(
        divergence=DIVERGENCES[divergence],
        alpha=alpha,
        temperature=temperature,
        denominator=denominator,
        chunk_size=chunk_positions(weight.shape[0], hidden.device, chunk_size),
        compute_dtype=compute_dtype or hidden.dtype,
    )
    targets = None if alpha == 0.0 else targets
    loss, divergence_sum, ce, teacher_weight = _ChunkedLoss.apply(
        hidden, weight, labels, targets, options
    )  # type: ignore[misc]
    return LossParts(loss=loss, divergence=divergence_sum, ce=ce, teacher_weight=teacher_weight)


@dataclass(frozen=True)
class _Options:
    divergence: Divergence
    alpha: float
    temperature: float
    denominator: float
    chunk_size: int
    compute_dtype: torch.dtype


class _ChunkedLoss(torch.autograd.Function):
    """Forward computes loss and gradients, chunk by chunk; backward scales them."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        targets: SoftSource | None,
        options: _Options,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        need_gradient = hidden.requires_grad or weight.requires_grad
        compute_dtype = options.compute_dtype
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        with torch.autocast(hidden.device.type, enabled=False):
            h = hidden.detach().to(compute_dtype)  # (N, H)
            w = weight.detach().to(compute_dtype)  # (V, H)
            grad_h = torch.empty_like(h) if need_gradient else None
            grad_w = torch.zeros_like(weight, dtype=dtype) if need_gradient else None
            loss_sum = torch.zeros((), dtype=dtype, device=hidden.device)
            divergence_sum, ce_sum, teacher_weight = (torch.zeros_like(loss_sum) for _ in range(3))
            buffer = LogitsBuffer(
                vocab_size=len(w), compute_dtype=compute_dtype, dtype=dtype, device=hidden.device
            )
            for span, soft in target_chunks(targets, len(h), options.chunk_size):
                rows = pad_rows(h[span])  # (n or more, H)
                n = span.stop - span.start
                logits = buffer.logits(rows, w)[:n]  # (n, V)
                if soft is None:
                    part = cross_entropy(logits, labels[span], need_gradient=need_gradient)
                else:
                    part = options.divergence(
                        logits,
                        labels[span],
                        soft,
                        alpha=options.alpha,
                        temperature=options.temperature,
                        need_gradient=need_gradient,
                    )
                    teacher_weight += soft.weight.sum()
                loss_sum += part.loss
                divergence_sum += part.divergence
                ce_sum += part.ce
                if grad_h is not None and grad_w is not None and part.grad_logits is not None:
                    g = buffer.gradient(part.grad_logits.mul_(1.0 / options.denominator), len(rows))
                    grad_h[span] = (g @ w)[:n]
                    _add_weight_gradient(grad_w, g, rows)
        if need_gradient:
            ctx.save_for_backward(grad_h, grad_w)
            ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(divergence_sum, ce_sum, teacher_weight)
        return loss_sum / options.denominator, divergence_sum, ce_sum, teacher_weight

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_h, grad_w = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        scaled_h = (grad_h * upstream).to(hidden_dtype)
        scaled_w = (grad_w * upstream).to(weight_dtype)
        return scaled_h, scaled_w, None, None, None


def _add_weight_gradient(grad_weight: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    """grad_weight (V, H) += grad_logits.t() @ hidden, from (n, V) and (n, H)."""
    for block in spans(len(grad_weight), _VOCABULARY_BLOCK):
        if grad_weight.dtype == hidden.dtype:
            grad_weight[block].addmm_(grad_logits[:, block].t(), hidden)
        else:
            grad_weight[block] += grad_logits[:, block].t() @ hidden
