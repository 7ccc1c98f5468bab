"""The device that a run computes on, and the precision of its matrix products."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.config import RunConfig


def device_and_dtype(
    config: RunConfig, has_bf16: Callable[[], bool]
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the matrix products, from the config or chosen for the machine.

    has_bf16: whether the CPU has bf16 instructions.
    """
    name = config.device.device
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    device = torch.device(name)
    precision = config.device.precision
    if precision == "auto":
        supported = {
            # Without emulation: a GPU before Ampere is slower in bf16 than in fp32.
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "mps": lambda: False,
            "cpu": has_bf16,
        }[device.type]()
        precision = "bf16" if supported else "fp32"
    return device, torch.bfloat16 if precision == "bf16" else torch.float32
