"""Tensors to safetensors files and back, streamed and digested."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint.hashing import hash_file
from engine.checkpoint.tensor_files import (
    first_non_finite,
    read_tensors,
    tensors_bytes,
    write_tensors,
)


def many_kinds() -> dict[str, torch.Tensor]:
    return {
        "bytes": torch.arange(7, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(3, 5).bfloat16(),
        "single": torch.randn(2, 3, 4),
        "double": torch.randn(9).double(),
        "long": torch.tensor([-1, 2**40]),
        "short": torch.tensor([-3], dtype=torch.int16),
        "step": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(4, 6).t(),
        "view": torch.randn(10)[2:5],
        "learnt": torch.nn.Parameter(torch.randn(2)),
    }


def test_a_file_reads_back_the_same_here_and_with_safetensors_itself(tmp_path: Path) -> None:
    tensors = many_kinds()
    record = write_tensors(tmp_path / "a.safetensors", tensors)
    for loaded in (
        read_tensors(tmp_path / "a.safetensors"),
        load_file(tmp_path / "a.safetensors"),
    ):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
            assert torch.equal(loaded[name], tensor)
    data = (tmp_path / "a.safetensors").read_bytes()
    assert record.bytes == len(data)
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.sha256 == hash_file(tmp_path / "a.safetensors", from_disk=True)


def test_no_tensors_at_all_are_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none.safetensors", {})
    assert read_tensors(tmp_path / "none.safetensors") == {}


def test_the_same_tensors_make_the_same_file_in_any_order(tmp_path: Path) -> None:
    tensors = many_kinds()
    turned = dict(reversed(tensors.items()))
    first = write_tensors(tmp_path / "a", tensors)
    assert write_tensors(tmp_path / "b", turned) == first


def test_tied_weights_are_stored_once_and_loaded_under_both_names(tmp_path: Path) -> None:
    weight = torch.randn(100, 10)
    tied = {"embed": weight, "head": weight, "other": weight.clone()}
    record = write_tensors(tmp_path / "tied", tied)
    assert tensors_bytes(tied) == 8000 and 8000 < record.bytes < 8500
    loaded = read_tensors(tmp_path / "tied")
    assert loaded.keys() == tied.keys()
    assert loaded["head"] is loaded["embed"]


def test_an_existing_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "taken", {})
    assert (tmp_path / "taken").read_bytes() == b"mine"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    tensors = many_kinds()
    assert first_non_finite(tensors) is None
    tensors["bad"] = torch.zeros(50, 50, dtype=dtype)
    tensors["bad"][49, 49] = value
    assert first_non_finite(tensors) == "bad"
