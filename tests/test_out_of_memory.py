"""Out of memory: what the failed work held is free before it is tried again with less."""

from __future__ import annotations

import weakref

import pytest
import torch

from engine.out_of_memory import release, with_less


class Large:
    """Stands for a tensor that the failed work held."""


def test_the_size_is_halved_until_it_fits():
    tried = []

    def run(size: int) -> str:
        tried.append(size)
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return f"done with {size}"

    assert with_less(run, 16) == ("done with 2", 2)
    assert tried == [16, 8, 4, 2]


def test_the_last_error_and_every_other_error_are_raised():
    def never(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        with_less(never, 8, least=2)

    def broken(size: int) -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        with_less(broken, 8)


def test_the_failed_work_is_free_when_the_next_attempt_begins():
    held: list[weakref.ref] = []

    def run(size: int) -> list[bool]:
        alive = [reference() is not None for reference in held]
        large = Large()
        held.append(weakref.ref(large))
        if size > 1:
            try:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            except torch.OutOfMemoryError as error:
                raise RuntimeError("CUDA error: out of memory") from error
        return alive

    assert with_less(run, 4) == ([False, False], 1)


def test_release_clears_a_chain_of_errors():
    def fail() -> None:
        large = Large()
        held.append(weakref.ref(large))
        raise MemoryError

    held: list[weakref.ref] = []
    failure: Exception | None = None
    try:
        try:
            fail()
        except MemoryError as error:
            raise RuntimeError("out of memory") from error
    except RuntimeError as error:
        failure = error
    assert failure is not None and held[0]() is not None
    release(failure)
    assert held[0]() is None
    assert failure.__traceback__ is None and failure.__cause__ is None
