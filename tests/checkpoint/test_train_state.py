"""Optimizer and generators as tensors: a restored run takes the very same steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.train_state import (
    TrainState,
    load_optimizer_tensors,
    load_rng_tensors,
    optimizer_tensors,
    rng_tensors,
)
from engine.errors import GladiusError


class Tied(nn.Module):
    """Two names for one weight, and dropout that draws from the generator."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, size)
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.dropout(self.norm(self.embed(ids)), 0.3))


def make(seed: int) -> tuple[Tied, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = Tied()
    groups = [{"params": [p], "weight_decay": 0.1 * p.dim()} for p in model.parameters()]
    return model, torch.optim.AdamW(groups, lr=0.01, fused=True)


def train(model: Tied, optimizer: torch.optim.AdamW, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        ids = torch.randint(0, 20, (4, 8))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def state_of(model: Tied, optimizer: torch.optim.AdamW, step: int) -> TrainState:
    return TrainState(
        step, step, model.state_dict(), optimizer_tensors(model, optimizer), {}, rng_tensors()
    )


def test_a_restored_run_is_bit_identical_to_one_that_continued(tmp_path: Path) -> None:
    model, optimizer = make(seed=1)
    train(model, optimizer, 5)
    store = CheckpointStore(tmp_path)
    store.save(state_of(model, optimizer, 5), config_json=b"{}", config_digest="d")
    expected = train(model, optimizer, 5)

    other, other_optimizer = make(seed=2)
    train(other, other_optimizer, 3)
    state, _ = store.load(5)
    other.load_state_dict(state.model_state)
    load_optimizer_tensors(other, other_optimizer, state.optimizer)
    load_rng_tensors(state.rng)
    assert train(other, other_optimizer, 5) == expected
    ours, theirs = state_of(other, other_optimizer, 10), state_of(model, optimizer, 10)
    for ours_, theirs_ in (
        (ours.model_state, theirs.model_state),
        (ours.optimizer, theirs.optimizer),
    ):
        assert all(torch.equal(ours_[name], theirs_[name]) for name in theirs_)


def test_optimizer_tensors_are_named_by_parameter_and_tied_ones_come_once() -> None:
    model, optimizer = make(seed=1)
    assert optimizer_tensors(model, optimizer) == {}
    train(model, optimizer, 1)
    assert set(optimizer_tensors(model, optimizer)) == {
        f"{kind}.{name}"
        for kind in ("step", "exp_avg", "exp_avg_sq")
        for name in ("embed.weight", "norm.weight", "norm.bias")
    }


def test_restoring_copies_so_that_training_leaves_the_loaded_state_alone() -> None:
    model, optimizer = make(seed=1)
    train(model, optimizer, 1)
    kept = {name: t.clone() for name, t in optimizer_tensors(model, optimizer).items()}
    loaded = {name: t.clone() for name, t in kept.items()}
    load_optimizer_tensors(model, optimizer, loaded)
    train(model, optimizer, 2)
    assert all(torch.equal(loaded[name], kept[name]) for name in kept)


def test_another_students_optimizer_is_refused() -> None:
    model, optimizer = make(seed=1)
    train(model, optimizer, 1)
    larger = Tied(size=16)
    with pytest.raises(GladiusError, match=r"exp_avg\.embed\.weight of shape \(20, 12\)"):
        load_optimizer_tensors(
            larger,
            torch.optim.AdamW(larger.parameters()),
            {"exp_avg.embed.weight": optimizer_tensors(model, optimizer)["exp_avg.embed.weight"]},
        )
    with pytest.raises(GladiusError, match="--fresh"):
        load_optimizer_tensors(model, optimizer, {"exp_avg.elsewhere": torch.zeros(1)})
