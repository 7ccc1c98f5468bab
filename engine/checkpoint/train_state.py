"""The state that a checkpoint holds: model, optimizer and random generators as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.errors import GladiusError


@dataclass
class TrainState:
    """Everything that the next step depends on. Loaded tensors are memory-mapped: copy them."""

    step: int
    tokens_seen: int
    model_state: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """By parameter name, see optimizer_tensors()."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """JSON values: cursors, averages, guards, best evaluation, training seconds, ..."""
    rng: dict[str, Tensor] = field(default_factory=dict)
    """uint8 states of generators, see rng_tensors()."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Copies of the run's small files by name (seal, journal, tokenizer, recent events); a
    checkpoint of an older version has none."""


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, `exp_avg.<name>` and so on; empty before a step.

    Tied weights are one parameter and appear once. The tensors are not copies. Parameter groups
    are not included: the trainer creates them and sets lr at each step.
    """
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Load the result of optimizer_tensors() as copies on each parameter's device.

    Raises GladiusError when they belong to another model.
    """
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for key_name, tensor in tensors.items():
        key, _, name = key_name.partition(".")
        parameter = parameters.get(name)
        if parameter is None or (tensor.dim() and tensor.shape != parameter.shape):
            raise GladiusError(
                f"the checkpoint's optimizer has {key_name} of shape {tuple(tensor.shape)}, which "
                "this student does not; resume with the config of the run, or start with --fresh"
            )
        # A fused optimizer needs its step counts on the device too; copied, as the file is mapped.
        copied = tensor.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = copied


def rng_tensors() -> dict[str, Tensor]:
    """States of torch's own generators: the CPU's, and each CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def load_rng_tensors(states: dict[str, Tensor]) -> None:
    """Load the result of rng_tensors(); devices that are no longer present are skipped."""
    torch.set_rng_state(states["cpu"].clone())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda:{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda:{index}"].clone(), index)
