"""The student's forward pass over a packed batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.distill.attention import Segments, packed_inputs


def hidden_states(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    attention: Tensor | Segments,
    position_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """(B, L, H) last hidden states; shapes of the inputs as in `packing.Batch`.

    Args:
        attention: the dense mask, or the segments that attend to themselves only.
        dtype: of the matrix products.
    """
    half = dtype != torch.float32
    with torch.autocast(input_ids.device.type, dtype=dtype if half else None, enabled=half):
        inputs: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        if isinstance(attention, Segments):
            inputs |= packed_inputs(model, attention)
        else:
            inputs["attention_mask"] = attention
        return model.model(**inputs, use_cache=False).last_hidden_state
