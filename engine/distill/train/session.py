"""The state of training that steps change and checkpoints store: weights, optimizer, data cursors,
gradient guard and evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.checkpoint.train_state import (
    TrainState,
    load_optimizer_tensors,
    load_rng_tensors,
    optimizer_tensors,
    rng_tensors,
)
from engine.config import GuardsConfig, OptimizerConfig
from engine.distill.data.cursors import Cursor, cursors_from_json, cursors_to_json
from engine.distill.train.guards import GradGuard
from engine.distill.train.on_policy import OnPolicyRound


@dataclass
class TrainingProgress:
    """The state that steps change, except weights and optimizer."""

    step: int = 0
    tokens_seen: int = 0
    cursors: dict[str, Cursor] = field(default_factory=dict)
    best: float | None = None
    """Lowest held-out bits per byte so far."""
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    """(step, held-out bits per byte), in order."""
    round: OnPolicyRound | None = None
    """The student's answers of the current on-policy round."""

    @property
    def evaluated(self) -> bool:
        """Whether the student was evaluated after the last step."""
        return bool(self.evaluations) and self.evaluations[-1][0] == self.step


class Session:
    """A student in training.

    Attributes:
        vocabulary: digest of the student's tokenizer.
        texts: fingerprints of the streamed texts, by source.

    A checkpoint with another vocabulary or other texts is not resumed.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        optimizer: OptimizerConfig,
        guards: GuardsConfig,
        vocabulary: str,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = make_optimizer(model, optimizer)
        self.progress = TrainingProgress()
        self.guard = GradGuard(guards)
        self.vocabulary = vocabulary
        self.texts = dict(texts or {})
        self._guards = guards
        self._activation_checkpointing = False

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def output_matrix(self) -> Tensor:
        """(V, H) output matrix, tied to the embedding or not."""
        return self.model.get_output_embeddings().weight  # type: ignore[union-attr,return-value]

    def state(self, training_seconds: float) -> TrainState:
        """Everything that the next step depends on; the tensors are not copied."""
        p = self.progress
        return TrainState(
            step=p.step,
            tokens_seen=p.tokens_seen,
            model_state={name: w.detach() for name, w in self.model.named_parameters()},
            optimizer=optimizer_tensors(self.model, self.optimizer),
            scalars={
                "cursors": cursors_to_json(p.cursors),
                "guard": self.guard.state,
                "best": p.best,
                "evaluations": [list(e) for e in p.evaluations],
                "training_seconds": training_seconds,
                "vocabulary": self.vocabulary,
                "texts": self.texts,
                "round": msgspec.to_builtins(p.round),
            },
            rng=rng_tensors(),
        )

    def restore(self, state: TrainState, rollbacks: int) -> None:
        """Load a checkpoint; `rollbacks` is their number in the journal."""
        # strict=False: a tied output matrix is stored once, under the embedding's name
        self.model.load_state_dict(state.model_state, strict=False)
        load_optimizer_tensors(self.model, self.optimizer, state.optimizer)
        scalars: dict[str, Any] = state.scalars
        self.progress = TrainingProgress(
            step=state.step,
            tokens_seen=state.tokens_seen,
            cursors=cursors_from_json(scalars["cursors"]),
            best=scalars["best"],
            evaluations=[(int(s), float(v)) for s, v in scalars["evaluations"]],
            round=msgspec.convert(scalars.get("round"), OnPolicyRound | None),
        )
        self.guard = GradGuard(self._guards, rollbacks, scalars["guard"])
        load_rng_tensors(state.rng)

    def move(self, device: torch.device) -> None:
        """Move weights and optimizer to another device."""
        self.model.to(device)  # type: ignore[arg-type]
        for state in self.optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    state[name] = value.to(device)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Whether activations are recomputed in the backward pass instead of being stored."""
        if enabled == self._activation_checkpointing:
            return
        # transformers 5.2x renamed these methods; the former names will be removed in version 6
        renamed = hasattr(self.model, "activation_checkpointing_enable")
        prefix = "activation" if renamed else "gradient"
        if enabled:
            getattr(self.model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.model, f"{prefix}_checkpointing_disable")()
        self._activation_checkpointing = enabled


def make_optimizer(model: LlamaForCausalLM, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW, with weight decay for matrices only. Each step sets the learning rate."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters if p.dim() > 1],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
