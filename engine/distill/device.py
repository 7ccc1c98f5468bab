"""The device that a run computes on, its settings, and the precision of its matrix products."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from engine import hardware
from engine.config import RunConfig
from engine.distill.align.blocks import LENGTH_STEP

_CUDA_LENGTH_STEP = 128


def device_and_dtype(
    config: RunConfig, has_bf16: Callable[[], bool]
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the matrix products, from the config or chosen for the machine.

    has_bf16: whether the CPU has bf16 instructions. Turns cuDNN attention off.
    """
    turn_off_cudnn_attention()
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


def turn_off_cudnn_attention() -> None:
    """Never choose cuDNN's attention, which is the default on Hopper and Blackwell.

    With a mask it gives NaN gradients for some lengths (pytorch #196678) and wrong text with few
    key-value heads (#193893), and it compiles a plan for every new shape.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def padded_length(length: int, device: torch.device) -> int:
    """Tokens of a batch that is `length` tokens long: rounded up, so that few shapes occur.

    Fused attention of CUDA wants multiples of 128.
    """
    step = _CUDA_LENGTH_STEP if device.type == "cuda" else LENGTH_STEP
    return length + -length % step


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on `device`; a GPU copies it from pinned memory, and the host does not wait."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def usable_memory(device: torch.device | str) -> int:
    """Bytes that this process uses on a device, or could use in addition."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return hardware.available_ram() + psutil.Process().memory_info().rss


def free_memory(device: torch.device | str) -> int:
    """Bytes that can be allocated now."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return hardware.available_ram()
