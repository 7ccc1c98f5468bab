"""Memory settings after out-of-memory errors, and which errors those are."""

from __future__ import annotations

import errno

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.distill.train.memory_ladder import MemoryLadder
from engine.out_of_memory import is_out_of_memory


def all_steps(ladder: MemoryLadder) -> list[tuple[str, object]]:
    """Kind and value of every decision down the ladder."""
    taken = []
    while (decision := ladder.next(7)) is not None:
        assert decision.step == 7
        taken.append((decision.kind, decision.value))
        ladder = ladder.after([decision])
    return taken


def test_halve_the_micro_batch_then_recompute_activations_then_move_to_the_cpu() -> None:
    assert all_steps(MemoryLadder(16, 8, False, "cuda")) == [
        ("micro_batch", 4),
        ("micro_batch", 2),
        ("micro_batch", 1),
        ("activation_checkpointing", True),
        ("device", "cpu"),
    ]


def test_on_the_cpu_the_last_step_is_to_recompute_activations() -> None:
    assert all_steps(MemoryLadder(16, 1, False, "cpu")) == [("activation_checkpointing", True)]
    assert all_steps(MemoryLadder(16, 1, True, "cpu")) == []


@given(st.integers(1, 96), st.data())
def test_every_micro_batch_size_divides_the_global_batch_size(
    rows: int, data: st.DataObject
) -> None:
    size = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
    sizes = [
        size,
        *(v for k, v in all_steps(MemoryLadder(rows, size, True, "cpu")) if k == "micro_batch"),
    ]
    assert sizes[-1] == 1
    assert all(rows % int(str(n)) == 0 for n in sizes)
    assert sizes == sorted(set(sizes), reverse=True)


def allocate_too_much() -> BaseException:
    try:
        torch.empty(1 << 62, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has 4 EiB of memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 99 bytes."
        ),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        allocate_too_much(),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:40],
)
def test_out_of_memory_is_recognised(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=str,
)
def test_other_errors_are_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
