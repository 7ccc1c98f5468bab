"""A frozen expert that generates answers and computes hidden states for scoring text."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.distill.teacher import head
from engine.distill.teacher.end_tokens import end_tokens
from engine.distill.teacher.model_config import context_limit
from engine.experts.registry import ExpertSpec
from engine.generation import Generator

_CHECKED_TEXT = "The river runs to the sea, and the lamp is lit."
"""Text on which the head is compared with the model's own logits."""


class Teacher(Generator):
    """A loaded expert.

    Attributes:
        model: the causal language model, in eval mode, without gradients.
        spec: the expert's registration.
        logit_softcap: Gemma's final cap c, logits = c tanh(logits / c); None elsewhere.
        memory_divisor: what a pass and a chunk of the projection are divided by; doubled when
            memory ran out.
        uses_own_head: whether logits need the model's own forward pass (`check_head`).
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
        self.logit_softcap: float | None = head.softcap(model)
        self.memory_divisor = 1
        self.uses_own_head = False

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """The output matrix (V_t, H) and its bias (V_t,), if it has one."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    @property
    def vocab_size(self) -> int:
        """Number of logits at each position, V_t."""
        return int(self.head[0].shape[0])

    @property
    def context(self) -> int | None:
        """Tokens that it reads at most; None where nothing limits them."""
        return context_limit(self.model.config)

    def check_head(self) -> None:
        """Compare head and hidden states with the model's own logits on a few tokens.

        Sets `uses_own_head`. Raises GladiusError if the model's logits can't be computed.
        """
        ids = [i for i in self.tokenizer.encode(_CHECKED_TEXT) if i < self.vocab_size]
        ids += [i % self.vocab_size for i in range(max(0, 8 - len(ids)))]
        self.uses_own_head = head.uses_own_head(self.model, ids[:16], self.spec.name)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, L, H) after the last norm: the input of the head.

        input_ids: (B, L) int64, padded on the right; attention_mask: (B, L), 1 for tokens.
        """
        return head.hidden_states(self.model, input_ids, attention_mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """(V_t, N) float32 logits, one column for each of the hidden states (N, H)."""
        if self.uses_own_head:
            return head.own_logits(self.model, hidden)
        return head.linear_logits(self.model, hidden, self.logit_softcap)
