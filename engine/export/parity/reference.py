"""Compute transformers' logits of a model one layer at a time, so that memory use stays near one
layer and a model larger than memory can still be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from engine.export.weights import EMBEDDING, Weights

_HEAD_ROWS = 4096


@torch.no_grad()
def reference_logits(
    folder: Path, sequences: Sequence[Sequence[int]], tick: Callable[[], None]
) -> np.ndarray:
    """(N, V) float32 logits of LlamaForCausalLM in f32, over the N tokens of all sequences.

    `tick` is called between layers and may raise to stop.
    """
    weights = Weights(folder)
    config = LlamaConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    embedding = weights.read(EMBEDDING)
    hidden = [embedding[torch.tensor(ids)][None].float() for ids in sequences]  # (1, L, H)
    del embedding
    rotary = LlamaRotaryEmbedding(config)
    position_ids = [torch.arange(len(ids))[None] for ids in sequences]  # (1, L)
    rotations = [rotary(states, ids) for states, ids in zip(hidden, position_ids, strict=True)]
    for number in range(config.num_hidden_layers):
        layer = _load_layer(weights, config, number)
        for n, states in enumerate(hidden):
            # Without a mask, transformers' attention is causal.
            out = layer(states, position_embeddings=rotations[n], position_ids=position_ids[n])
            hidden[n] = out[0] if isinstance(out, tuple) else out
            tick()
    norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    norm.weight.copy_(weights.read("model.norm.weight").float())
    states = norm(torch.cat(hidden, 1)[0])  # (N, H)
    head = weights.read(EMBEDDING if config.tie_word_embeddings else "lm_head.weight")  # (V, H)
    return _project(states, head, tick).numpy()


def _load_layer(weights: Weights, config: LlamaConfig, number: int) -> LlamaDecoderLayer:
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, number)
    prefix = f"model.layers.{number}."
    state_dict = {name: weights.read(prefix + name).float() for name in layer.state_dict()}
    layer.load_state_dict(state_dict, assign=True)
    return layer.eval()


def _project(states: Tensor, head: Tensor, tick: Callable[[], None]) -> Tensor:
    """states (N, H) @ head.T (H, V), with only _HEAD_ROWS rows of the head in f32 at a time."""
    logits = torch.empty(len(states), len(head))  # (N, V)
    for start in range(0, len(head), _HEAD_ROWS):
        rows = slice(start, start + _HEAD_ROWS)
        logits[:, rows] = states @ head[rows].float().T
        tick()
    return logits
