"""Out-of-memory errors: recognise them, free what the failed work held, and retry with less."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_TEXTS = (
    "out of memory",  # CUDA, HIP, MPS, XPU allocators and driver errors
    "defaultcpuallocator: can't allocate memory",
    "defaultcpuallocator: not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the memory of a device or of the machine is exhausted."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(t in text for t in _TEXTS)


def release(error: BaseException) -> None:
    """Free what the failed work held: the locals of its frames, then the allocator's cache.

    Call it after the `except` block has ended: inside it Python still holds the error, its
    traceback, and with it every tensor of the failed pass, so that an empty cache frees nothing.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found.__traceback__ = None
        earlier = found.__cause__ or found.__context__
        found.__cause__ = found.__context__ = None
        found = earlier
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def with_less(run: Callable[[int], T], size: int, least: int = 1) -> tuple[T, int]:
    """run(size), with half the size after each out-of-memory error: (result, size that fitted).

    Raises the error if `least` does not fit.
    """
    while True:
        try:
            return run(size), size
        except Exception as error:
            if size <= least or not is_out_of_memory(error):
                raise
            failure = error
        release(failure)
        del failure
        size = max(least, size // 2)
