"""Results that are the same bit by bit on a GPU, or an error that names the operation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.errors import UsageError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


def set_deterministic(enabled: bool, device: torch.device) -> None:
    """Use deterministic algorithms only, or not. Call it before the first operation on a GPU.

    Raises UsageError if the environment has a cuBLAS workspace that is not deterministic.
    """
    if enabled and device.type == "cuda":
        value = os.environ.setdefault(_WORKSPACE, _DETERMINISTIC_WORKSPACES[0])
        if value not in _DETERMINISTIC_WORKSPACES:
            raise UsageError(
                f"device.deterministic=true needs {_WORKSPACE}={_DETERMINISTIC_WORKSPACES[0]}, "
                f"and the environment has {value!r}: unset it"
            )
    torch.use_deterministic_algorithms(enabled)


@contextmanager
def refuse_nondeterminism() -> Iterator[None]:
    """Raise UsageError where an operation inside the block has no deterministic implementation."""
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error) or not torch.are_deterministic_algorithms_enabled():
            raise
        what = str(error).split(" does not have")[0].split("\n")[0][:120]
        raise UsageError(
            f"device.deterministic=true: {what} has no deterministic implementation on this "
            "device; start a new run without it: --set device.deterministic=false"
        ) from error


def cumsum(values: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """`values.cumsum(dim)`; computed on the CPU where CUDA has only a kernel that is not
    deterministic and `set_deterministic` forbids it."""
    floating = values.is_floating_point() or (dtype is not None and dtype.is_floating_point)
    if values.is_cuda and floating and torch.are_deterministic_algorithms_enabled():
        return values.cpu().cumsum(dim, dtype=dtype).to(values.device)
    return values.cumsum(dim, dtype=dtype)
