"""A frozen expert that generates answers and computes hidden states for scoring text."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.distill.attention import without_mask
from engine.distill.device import to_device
from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec
from engine.generation import Generator


class Teacher(Generator):
    """A loaded expert.

    Attributes:
        model: the causal language model, in eval mode, without gradients.
        spec: the expert's registration.
        logit_softcap: gemma-2's final cap c, logits = c tanh(logits / c); None elsewhere.
        memory_divisor: what a pass and a chunk of the projection are divided by; doubled when
            memory ran out.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> None:
        configured = getattr(model.generation_config, "eos_token_id", None)
        super().__init__(
            model,
            tokenizer,
            end_tokens(tokenizer, spec, configured),
            chat_format=spec.chat,
            stop_strings=spec.stop_strings,
            title=spec.title,
        )
        self.spec = spec
        self.memory_divisor = 1
        self.logit_softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """The output matrix (V_t, H) and its bias (V_t,), if it has one."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, L, H) after the last norm: the input of the head.

        input_ids: (B, L) int64, padded on the right; attention_mask: (B, L), 1 for tokens.
        """
        ids, mask = to_device(input_ids, self.device), None
        causal: AbstractContextManager[None] = nullcontext()
        if self.device.type == "cuda":
            causal = without_mask(self.model, input_ids.shape[1])  # its causal kernel is faster
        else:
            mask = attention_mask.to(self.device)
        with torch.no_grad(), causal:
            output = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        return output.last_hidden_state


def end_tokens(
    tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec, configured: Any
) -> tuple[int, ...]:
    """Ids of the tokens that end an expert's turn.

    The registered ones that its vocabulary has; else the tokenizer's EOS and `configured`, the
    eos_token_id of its generation config. Raises GladiusError where there is none.
    """
    vocabulary = tokenizer.get_vocab()
    ids: list[Any] = [vocabulary[t] for t in spec.end_tokens if t in vocabulary]
    if not ids:
        more = configured if isinstance(configured, list) else [configured]
        ids = [i for i in (tokenizer.eos_token_id, *more) if i is not None]
    if not ids:
        raise GladiusError(
            f"expert {spec.name} has no end-of-turn token; set its end_tokens in gladius.toml"
        )
    return tuple(dict.fromkeys(ids))
