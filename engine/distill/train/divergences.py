"""Divergences between teacher and student: the loss of one chunk of positions, and its gradient.

Each function in DIVERGENCES computes, for n scored positions,

    sum_i [ alpha w_i T^2 D(q_T,i, p_T,i) + (1 - alpha w_i) CE(z_i, x_i) ]

where z are the student's logits, p_T = softmax(z / T), q_T is the teacher's distribution at the
same temperature and x the text. T^2 keeps the size of the soft gradient (arXiv 1503.02531). The
divergences D are those of generalised knowledge distillation (arXiv 2306.13649, section 2 and
appendix A):

    forward_kl   KL(q_T || p_T)     covers everything that the teacher finds probable
    reverse_kl   KL(p_T || q_T)     avoids what the teacher finds improbable
    jsd          b KL(q_T || m) + (1 - b) KL(p_T || m),  m = b q_T + (1 - b) p_T,  b = 0.5

Sparse targets hold the exact q_T of the top k tokens, and draws that represent the tail's mass.
The forward KL is linear in q_T, so the draws estimate it without bias. The other two need q_T(v)
of every token that the student may choose, and of a drawn token only the tail's mass is known:
they treat all tokens outside the top k as one event "rest", with q_rest = the tail's mass and
p_rest = the student's mass on all of them. Merging events can only lower a divergence (data
processing inequality), so this never overstates the distance. What is lost follows from the chain
rule and is small where the student puts little mass outside the top k:

    reverse_kl   p_rest KL(p_T(. | rest) || q_T(. | rest))
    jsd          at most (b q_rest + (1 - b) p_rest) log 2

It is exact when all tokens are kept. The order of tokens within the rest is left to the
cross-entropy.

Shapes: n positions of the chunk, V student tokens, K entries of sparse targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from engine.distill.teacher.soft_targets import SoftTargets

JSD_BETA = 0.5
"""Weight of the teacher in the mixture of `jsd`."""

MIN_TEACHER_PROBABILITY = 1e-8
"""Least q_T of a token in `reverse_kl`, which would be infinite where the teacher's vocabulary
cannot express a token of the student's."""


@dataclass(frozen=True)
class ChunkLoss:
    """Sums over the positions of a chunk (0-dim tensors), and the gradient."""

    loss: Tensor
    divergence: Tensor
    """Sum of w_i D_i in nats."""
    ce: Tensor
    """Sum of CE_i in nats."""
    grad_logits: Tensor | None
    """(n, V) d loss / d logits, in the memory of the logits where possible; None: not requested."""


class Divergence(Protocol):
    """The loss of one chunk with soft targets."""

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        targets: SoftTargets,
        *,
        alpha: float,
        temperature: float,
        need_gradient: bool,
    ) -> ChunkLoss:
        """Loss sums and gradient for logits (n, V), which are overwritten, and labels (n,)."""
        ...


def cross_entropy(logits: Tensor, labels: Tensor, *, need_gradient: bool) -> ChunkLoss:
    """Plain cross-entropy for logits (n, V), which are overwritten, and labels (n,)."""
    rows = torch.arange(len(logits), device=logits.device)
    logits -= logits.amax(1, keepdim=True)
    label_logits = logits[rows, labels]
    p = logits.exp_()
    total = p.sum(1)
    ce = total.log() - label_logits
    if need_gradient:
        p *= (1.0 / total)[:, None]
        p[rows, labels] -= 1.0
    ce_sum = ce.sum()
    return ChunkLoss(
        loss=ce_sum,
        divergence=torch.zeros_like(ce_sum),
        ce=ce_sum,
        grad_logits=p if need_gradient else None,
    )


def forward_kl(
    logits: Tensor,
    labels: Tensor,
    targets: SoftTargets,
    *,
    alpha: float,
    temperature: float,
    need_gradient: bool,
) -> ChunkLoss:
    """KL(q_T || p_T) and cross-entropy; see Divergence.

    The gradient of the soft term with respect to z is alpha w T (p_T - q_T): T^2 / T.
    """
    rows = torch.arange(len(logits), device=logits.device)
    z, t = logits, temperature
    z -= z.amax(1, keepdim=True)
    label_logits = z[rows, labels]
    w = targets.weight.to(z.dtype)
    expected = _expected_logits(z, targets) / t  # before z is overwritten
    soft, soft_total, hard, hard_total = _unnormalised(z, t)
    ce = hard_total.log() - label_logits
    kl = soft_total.log() - expected - targets.entropy.to(z.dtype)
    kl = torch.where(w > 0, kl, 0.0)
    soft_share = alpha * w
    hard_scale = (1.0 - soft_share) * targets.text_weight
    loss = (soft_share * (t * t) * kl + hard_scale * ce).sum()
    if need_gradient:
        soft_scale = soft_share * t
        if hard is None:
            soft *= ((soft_scale + hard_scale) / hard_total)[:, None]
        else:
            soft *= (soft_scale / soft_total)[:, None]
            soft.addcmul_(hard, (hard_scale / hard_total)[:, None])
        _subtract_targets(soft, targets, soft_scale)
        soft[rows, labels] -= hard_scale
    return ChunkLoss(
        loss=loss,
        divergence=(w * kl).sum(),
        ce=ce.sum(),
        grad_logits=soft if need_gradient else None,
    )


def _expected_logits(z: Tensor, targets: SoftTargets) -> Tensor:
    """(n,) sum over tokens of q_T z."""
    if targets.dense is not None:
        return (targets.dense.to(z.dtype) * z).sum(1)
    assert targets.ids is not None and targets.mass is not None
    return (targets.mass.to(z.dtype) * z.gather(1, targets.ids)).sum(1)


def _unnormalised(z: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """e^(z/T) (n, V) in place of z, and its sums (n,); e^z and its sums.

    At T = 1 both are the same; the second is None then.
    """
    if t == 1.0:
        soft = z.exp_()
        total = soft.sum(1)
        return soft, total, None, total
    if t == 2.0:
        # e^z is the square of e^(z/2): one exponential serves both
        soft = z.mul_(0.5).exp_()
        hard = soft * soft
    else:
        hard = z.exp()
        soft = z.mul_(1.0 / t).exp_()
    return soft, soft.sum(1), hard, hard.sum(1)


def _subtract_targets(gradient: Tensor, targets: SoftTargets, scale: Tensor) -> None:
    """gradient (n, V) -= scale (n,) q_T, in place."""
    if targets.dense is not None:
        gradient.addcmul_(targets.dense.to(gradient.dtype), scale[:, None], value=-1.0)
    else:
        assert targets.ids is not None and targets.mass is not None
        mass = targets.mass.to(gradient.dtype)
        gradient.scatter_add_(1, targets.ids, mass * -scale[:, None])


class _Pointwise(Protocol):
    """A divergence of the form sum over events of f(p, q)."""

    def __call__(self, p: Tensor, q: Tensor, *, min_q: Tensor | float) -> tuple[Tensor, Tensor]:
        """(n,) the divergence, and its derivative with respect to p, of p and q (n, events).

        Terms of the derivative that are the same for all events are left out: they vanish in the
        softmax. `min_q` is the least probability that q may give an event, if that matters.
        """
        ...


def _reverse_kl(p: Tensor, q: Tensor, *, min_q: Tensor | float) -> tuple[Tensor, Tensor]:
    """sum p log(p / q); d/dp = log(p / q) + 1."""
    floor = min_q if isinstance(min_q, Tensor) else torch.tensor(min_q)
    log_ratio = _log(p).sub_(_log(torch.maximum(q, floor.to(q))))
    return (p * log_ratio).sum(1), log_ratio


def _jsd(p: Tensor, q: Tensor, *, min_q: Tensor | float) -> tuple[Tensor, Tensor]:
    """b sum q log(q / m) + (1 - b) sum p log(p / m); d/dp = (1 - b) log(p / m).

    The derivatives of m cancel. It is finite for any q: min_q is not needed.
    """
    b = JSD_BETA
    log_m = _log(q.mul(b).add_(p, alpha=1.0 - b))
    log_ratio = _log(p).sub_(log_m)
    teacher_part = (q * (_log(q) - log_m)).sum(1)
    return b * teacher_part + (1.0 - b) * (p * log_ratio).sum(1), log_ratio.mul_(1.0 - b)


def _log(x: Tensor) -> Tensor:
    """log x in new memory; finite at 0, where it is multiplied by 0."""
    return x.clamp_min(torch.finfo(x.dtype).tiny).log_()


def _pointwise_divergence(
    logits: Tensor,
    labels: Tensor,
    targets: SoftTargets,
    *,
    alpha: float,
    temperature: float,
    need_gradient: bool,
    pointwise: _Pointwise,
) -> ChunkLoss:
    """Loss sums and gradient with any pointwise divergence; see Divergence.

    With g = dD/dp the gradient of D with respect to z is p (g - sum p g) / T.
    """
    rows = torch.arange(len(logits), device=logits.device)
    z, t = logits, temperature
    z -= z.amax(1, keepdim=True)
    label_logits = z[rows, labels]
    p, p_total, hard, hard_total = _unnormalised(z, t)
    p /= p_total[:, None]
    ce = hard_total.log() - label_logits
    if targets.dense is not None:
        q = targets.dense.to(p.dtype)
        divergence, slope = pointwise(p, q, min_q=MIN_TEACHER_PROBABILITY)
        slope -= (p * slope).sum(1, keepdim=True)
    else:
        top_ids, p_events, q_events, min_q = _events(p, targets)
        divergence, slope = pointwise(p_events, q_events, min_q=min_q)
        slope -= (p_events * slope).sum(1, keepdim=True)

    w = targets.weight.to(p.dtype)
    divergence = torch.where(w > 0, divergence, 0.0)
    soft_share = alpha * w
    hard_scale = (1.0 - soft_share) * targets.text_weight
    loss = (soft_share * (t * t) * divergence + hard_scale * ce).sum()
    if need_gradient:
        slope *= (soft_share * t)[:, None]
        if hard is None:
            slope += hard_scale[:, None]
        if targets.dense is not None:
            p *= slope
        else:
            p_top = p_events[:, :-1] * slope[:, :-1]
            p *= slope[:, -1:]
            p.scatter_(1, top_ids, p_top)
        if hard is not None:
            p.addcmul_(hard, (hard_scale / hard_total)[:, None])
        p[rows, labels] -= hard_scale
    return ChunkLoss(
        loss=loss,
        divergence=(w * divergence).sum(),
        ce=ce.sum(),
        grad_logits=p if need_gradient else None,
    )


def _events(p: Tensor, targets: SoftTargets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The top k tokens and the rest as k + 1 events: (n, k) ids, (n, k + 1) p, q; (k + 1,) min q.

    p (n, V) is changed only in passing.
    """
    assert targets.ids is not None and targets.mass is not None
    k = targets.ids.shape[1] if targets.top_k is None else targets.top_k
    top_ids = targets.ids[:, :k]
    p_top = p.gather(1, top_ids)
    # 1 - sum(p_top) would cancel; the rest must not be less than any of its tokens
    p_rest = p.scatter_(1, top_ids, 0.0).sum(1, keepdim=True)
    p.scatter_(1, top_ids, p_top)
    mass = targets.mass.to(p.dtype)
    q_rest = mass[:, k:].sum(1, keepdim=True)
    min_q = torch.full((k + 1,), MIN_TEACHER_PROBABILITY, dtype=p.dtype, device=p.device)
    min_q[k] *= p.shape[1] - k
    return (
        top_ids,
        torch.cat([p_top, p_rest], dim=1),
        torch.cat([mass[:, :k], q_rest], dim=1),
        min_q,
    )


DIVERGENCES: Mapping[str, Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": partial(_pointwise_divergence, pointwise=_reverse_kl),
    "jsd": partial(_pointwise_divergence, pointwise=_jsd),
}
"""By their names in the config (`loss.divergence`)."""
