"""Baselines for the trainer: a plain PyTorch training loop and a plain teacher forward pass with
transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.config import OptimizerConfig
from engine.distill.data.packing import Batch

IGNORED = -100


class BareLoop:
    """Trains a student with plain cross-entropy on batches that are tensors already.

    Autocast to `dtype`, clipped gradient, fused AdamW; masked and packed as the trainer's. Labels
    other than the scored ones are ignored by the loss.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        settings: OptimizerConfig,
        dtype: torch.dtype,
        scored_only: bool,
    ) -> None:
        """scored_only: gather the scored positions before the head instead of ignoring the rest
        after it (fewer logits)."""
        self.model = model
        self.grad_clip = settings.grad_clip
        self.dtype = dtype
        self.scored_only = scored_only
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, batch: Batch, labels: Tensor) -> None:
        """One optimizer step; `labels` (B, L) from `full_labels`."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(
            batch.input_ids.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            inputs = {
                "input_ids": batch.input_ids,
                "attention_mask": batch.mask,
                "position_ids": batch.position_ids,
                "use_cache": False,
            }
            if self.scored_only:
                hidden = self.model.model(**inputs).last_hidden_state.flatten(0, 1)
                loss = F.cross_entropy(self.model.lm_head(hidden[batch.gather]), batch.labels)
            else:
                logits = self.model(**inputs).logits.flatten(0, 1)
                loss = F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.optimizer.step()


def full_labels(batch: Batch) -> Tensor:
    """(B, L) int64: the token that each position predicts where it is scored, else IGNORED."""
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels.view(-1)[batch.gather] = batch.labels
    return labels


class BareTeacher:
    """The teacher's logits of texts, in padded batches of similar length; nothing is kept."""

    def __init__(self, model: torch.nn.Module, tokens_per_batch: int) -> None:
        self.model = model
        self.tokens_per_batch = tokens_per_batch

    def batches(self, texts: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """(ids, mask) of each batch, both (B, L) int64."""
        made: list[list[np.ndarray]] = []
        for text in sorted(texts, key=len, reverse=True):
            if not made or (len(made[-1]) + 1) * len(made[-1][0]) > self.tokens_per_batch:
                made.append([])
            made[-1].append(text)
        return [self._padded(batch) for batch in made]

    def _padded(self, texts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(texts), max(len(text) for text in texts), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.from_numpy(text)
            mask[row, : len(text)] = 1
        return ids, mask

    @torch.no_grad()
    def forward(self, batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        for ids, mask in batches:
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)
