"""How a model turns hidden states into logits, checked against the model's own forward pass.

Most models multiply by the output matrix. Some do more (they scale the logits or the hidden states,
or cap the logits): for these the model's own code is run on the hidden states.

Shapes: N positions, L tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MoeModelOutputWithPast

from engine.distill.attention import without_mask
from engine.distill.device import to_device
from engine.errors import GladiusError

_EXACT, _ROUNDED = 1e-4, 2e-2
"""Largest difference of two logits relative to the largest logit, in fp32 and in half precision."""
_SCALE_EXACT, _SCALE_ROUNDED = 1e-4, 5e-3
"""Largest difference of their common factor from 1: rounding errors cancel in it."""
_CAUSAL = 0.1
"""Largest median change of a hidden state, relative to its size, when tokens follow."""


def hidden_states(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Hidden states (B, L, H) after the last norm.

    input_ids: (B, L) int64, padded on the right; attention_mask: (B, L), 1 for tokens.
    """
    ids, mask = to_device(input_ids, model.device), None
    causal: AbstractContextManager[None] = nullcontext()
    if model.device.type == "cuda":
        causal = without_mask(model, input_ids.shape[1])  # its causal kernel is faster
    else:
        mask = attention_mask.to(model.device)
    with torch.no_grad(), causal:
        output = base_of(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    return output.last_hidden_state


def base_of(model: Any) -> Any:
    """The part of the model that computes hidden states."""
    candidates = (model.base_model, model.get_decoder(), getattr(model, "model", None))
    return next((base for base in candidates if base is not None and base is not model), model)


def softcap(model: Any) -> float | None:
    """The cap c of the logits, c tanh(logits / c) (Gemma 2 and later); None if there is none."""
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for part in (config, text):
        cap = getattr(part, "final_logit_softcapping", None)
        if cap is not None:
            return float(cap)
    return None


def linear_logits(model: Any, hidden: Tensor, cap: float | None) -> Tensor:
    """(V, N) float32 logits of hidden states (N, H): output matrix, bias and cap."""
    layer = model.get_output_embeddings()
    logits = (layer.weight @ hidden.t()).float()
    bias = getattr(layer, "bias", None)
    if bias is not None:
        logits += bias.float()[:, None]
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def own_logits(model: Any, hidden: Tensor) -> Tensor:
    """(V, N) float32 logits of hidden states (N, H), by the model's own forward pass.

    Its base model returns `hidden` instead of computing anything.
    """
    # The ids are not used: they give the forward pass its shape.
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    with torch.no_grad(), _base_returns(base_of(model), hidden[None]):
        logits = model(input_ids=ids, use_cache=False).logits[0]  # (N, V)
    return logits.float().t().contiguous()


@dataclass
class _FixedOutput(MoeModelOutputWithPast):
    """The output of a base model, with None for every field but the hidden states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _base_returns(base: Any, hidden: Tensor) -> Iterator[None]:
    output = _FixedOutput(last_hidden_state=hidden)  # type: ignore[arg-type]
    base.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del base.forward


@torch.no_grad()
def uses_own_head(model: Any, token_ids: Sequence[int], name: str) -> bool:
    """Whether logits need the model's own forward pass; False where `linear_logits` equals it.

    token_ids: a few tokens of text, on which both are compared.

    Raises GladiusError if neither gives the model's own logits, or if the model is not causal.
    """
    ids = torch.tensor([list(token_ids)], device=model.device)
    mask = torch.ones_like(ids)
    kind = getattr(model.config, "model_type", "unknown")
    try:
        own = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0].float()
        hidden = hidden_states(model, ids, mask)[0]  # (L, H)
        half = max(1, len(token_ids) // 2)
        shorter = hidden_states(model, ids[:, :half], mask[:, :half])[0]
    except Exception as error:  # an architecture that works differently can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise _refusal(name, kind, f"its hidden states can't be read ({why})") from error
    if not _is_causal(shorter.float(), hidden[:half].float()):
        raise _refusal(name, kind, "a token's distribution depends on the tokens after it")
    for logits, is_own in ((_linear_or_none, False), (_own_or_none, True)):
        found = logits(model, hidden)
        if found is not None and _agree(found.t(), own, model.dtype):
            return is_own
    raise _refusal(name, kind, "its logits can't be computed from its hidden states")


def _refusal(name: str, kind: str, why: str) -> GladiusError:
    return GladiusError(
        f"expert {name}: models of type {kind!r} can't be used ({why}); choose another model"
    )


def _linear_or_none(model: Any, hidden: Tensor) -> Tensor | None:
    try:
        return linear_logits(model, hidden, softcap(model))
    except (AttributeError, RuntimeError, TypeError):
        return None


def _own_or_none(model: Any, hidden: Tensor) -> Tensor | None:
    try:
        return own_logits(model, hidden)
    except Exception:  # a forward pass that reads more than the hidden states
        return None


def _agree(found: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    """Whether two (L, V) logits are the same up to rounding."""
    if found.shape != own.shape or not bool(torch.isfinite(own).all()):
        return False
    exact = dtype == torch.float32
    largest = float(own.abs().max()) or 1.0
    error = float((found - own).abs().max()) / largest
    scale = float((found * own).sum() / (own * own).sum().clamp_min(1e-30))
    return error <= (_EXACT if exact else _ROUNDED) and abs(scale - 1) <= (
        _SCALE_EXACT if exact else _SCALE_ROUNDED
    )


def _is_causal(alone: Tensor, followed: Tensor) -> bool:
    """Whether hidden states (L, H) stay the same when other tokens follow."""
    size = followed.norm(dim=-1).clamp_min(1e-6)
    return float(((alone - followed).norm(dim=-1) / size).median()) <= _CAUSAL
