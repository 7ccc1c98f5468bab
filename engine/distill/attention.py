"""Attention of an expert that scores text: causal, without a mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

_CAUSAL = "sdpa_causal"
# It has no function for masks: transformers then makes none, and need not ask the device whether
# the positions are those of several texts.
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)


@contextmanager
def without_mask(model: Any, length: int) -> Iterator[None]:
    """Inside the block the model attends causally, without a mask, to all earlier positions.

    For texts of at most `length` tokens that are padded on the right: no token sees the padding. A
    model with its own attention (a soft cap), or a shorter sliding window, keeps its masks.
    """
    config = model.config
    window = getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or (window is not None and window < length):
        yield
        return
    config._attn_implementation = _CAUSAL
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"
