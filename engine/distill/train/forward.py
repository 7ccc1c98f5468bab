"""The student's forward pass over a packed batch."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


def hidden_states(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    mask: Tensor,
    position_ids: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """(B, L, H) last hidden states; shapes of the inputs as in `packing.Batch`.

    dtype: of the matrix products.
    """
    half = dtype != torch.float32
    with torch.autocast(input_ids.device.type, dtype=dtype if half else None, enabled=half):
        return model.model(
            input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
