"""Owns transformers' own logits of a model, computed a layer at a time: memory stays near one
layer, so that a model that fits no memory whole can still be compared.
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

from engine.export.tensors import Weights


@torch.no_grad()
def reference_logits(
    folder: Path, sequences: Sequence[Sequence[int]], tick: Callable[[], None]
) -> np.ndarray:
    """(tokens of all sequences, vocabulary) float32: what LlamaForCausalLM says of each, in f32."""
    weights = Weights(folder)
    config = LlamaConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    embedding = weights.read("model.embed_tokens.weight")
    hidden = [embedding[torch.tensor(ids)][None].float() for ids in sequences]  # (1, n, hidden)
    del embedding
    rotary = LlamaRotaryEmbedding(config)
    places = [torch.arange(len(ids))[None] for ids in sequences]
    turns = [rotary(states, place) for states, place in zip(hidden, places, strict=True)]
    for number in range(config.num_hidden_layers):
        with torch.device("meta"):
            layer = LlamaDecoderLayer(config, number)
        prefix = f"model.layers.{number}."
        state = {name: weights.read(prefix + name).float() for name in layer.state_dict()}
        layer.load_state_dict(state, assign=True)
        layer.eval()
        for n, states in enumerate(hidden):
            # Without a mask, transformers' attention is causal.
            out = layer(states, position_embeddings=turns[n], position_ids=places[n])
            hidden[n] = out[0] if isinstance(out, tuple) else out
            tick()
    norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    norm.weight.copy_(weights.read("model.norm.weight").float())
    states = norm(torch.cat(hidden, 1)[0])
    tied = config.tie_word_embeddings
    head = weights.read("model.embed_tokens.weight" if tied else "lm_head.weight")
    return _project(states, head, tick).numpy()


def _project(states: Tensor, head: Tensor, tick: Callable[[], None]) -> Tensor:
    """states @ head.T, the matrix in f32 a few thousand rows at a time."""
    out = torch.empty(len(states), len(head))
    for start in range(0, len(head), 4096):
        out[:, start : start + 4096] = states @ head[start : start + 4096].float().T
        tick()
    return out
