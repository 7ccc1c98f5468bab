"""Compare every tensor of a GGUF file, as stored on the disk, with the model's safetensors."""

from __future__ import annotations

import math
import os
from typing import BinaryIO

import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor

from engine.events import CheckDone
from engine.export.parity.comparison import Comparison
from engine.export.tensors import (
    CHUNK_WEIGHTS,
    TensorMapping,
    map_tensors,
    max_abs,
    single_threaded,
    unpermute,
)
from engine.gguf_types import GgufType

_EXACT = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
"""Types that must store the weights exactly, after rounding."""
_UNKNOWN_TYPE_ERROR = 0.5


def check_tensors(comparison: Comparison) -> CheckDone:
    """Check every tensor: equal after rounding, or within the quantization type's error bound."""
    mappings = map_tensors(comparison.weights)
    total = float(sum(int(tensor.n_bytes) for tensor in comparison.stored.values()))
    done = 0.0
    findings: list[str] = []
    largest_error = 0.0
    with open(comparison.path, "rb") as file, single_threaded():
        if hasattr(os, "posix_fadvise"):  # read what the disk stores, not the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for mapping in mappings:
            error, finding = _compare_tensor(comparison, mapping, file)
            largest_error = max(largest_error, error)
            if finding:
                findings.append(finding)
            done += int(comparison.stored[mapping.gguf_name].n_bytes)
            comparison.report("comparing tensors", done, total)
    exact = comparison.type is not None and not comparison.type.tensor_error
    value = f"all {len(mappings)} exact" if exact else f"largest error {largest_error:.2%}"
    bound = f"error at most {_error_bound(comparison.type):.0%}"
    return CheckDone(
        group="structural",
        name="gguf_tensors",
        title="GGUF tensors",
        value=value if not findings else f"{len(findings)} differ: {findings[0]}",
        bound="exact after rounding" if exact else bound,
        verdict="fail" if findings else "pass",
        meaning="Every weight in the file, read back from the disk, matches the model's.",
        detail="\n".join(findings[:20]),
        number=largest_error,
    )


def _compare_tensor(
    comparison: Comparison, mapping: TensorMapping, file: BinaryIO
) -> tuple[float, str]:
    """(relative RMS error, what is wrong) of one tensor; the text is empty when nothing is."""
    stored = comparison.stored[mapping.gguf_name]
    ggml_type = stored.tensor_type
    columns = mapping.shape[-1]
    rows = comparison.weights.read(mapping.hf_name).reshape(-1, columns)  # (rows, columns)
    row_bytes = int(stored.n_bytes) // len(rows)
    # Undoing the permutation needs the whole tensor; permuted tensors are the small ones.
    step = len(rows) if mapping.permuted_heads else max(1, CHUNK_WEIGHTS // columns)
    error_squares = weight_squares = 0.0
    for start in range(0, len(rows), step):
        expected = rows[start : start + step]
        file.seek(int(stored.data_offset) + start * row_bytes)
        data = file.read(len(expected) * row_bytes)
        if len(data) != len(expected) * row_bytes:
            return math.inf, f"{mapping.gguf_name} is cut short"
        found = unpermute(_decode(data, ggml_type, columns), mapping.permuted_heads)
        if not math.isfinite(max_abs(found)):
            return math.inf, f"{mapping.gguf_name} has weights that are not finite"
        if ggml_type in _EXACT:
            exact = expected.float().to(_EXACT[ggml_type])
            if not torch.equal(found, exact):
                difference = (found.float() - exact.float()).abs().max().item()
                return math.inf, f"{mapping.gguf_name} differs by up to {difference:.3g}"
            continue
        expected = expected.float()
        error_squares += (found - expected).square().sum(dtype=torch.float64).item()
        weight_squares += expected.square().sum(dtype=torch.float64).item()
    error = (
        math.sqrt(error_squares / weight_squares) if weight_squares else math.sqrt(error_squares)
    )
    if error > _error_bound(comparison.type):
        return error, f"{mapping.gguf_name} ({ggml_type.name}) has an error of {error:.1%}"
    return error, ""


def _error_bound(file_type: GgufType | None) -> float:
    return file_type.tensor_error if file_type and file_type.tensor_error else _UNKNOWN_TYPE_ERROR


def _decode(data: bytes, ggml_type: GGMLQuantizationType, columns: int) -> Tensor:
    """Rows of a tensor from its bytes: exact types in their own dtype, others as float32."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if ggml_type in _EXACT:
        return flat.view(_EXACT[ggml_type]).reshape(-1, columns)
    return torch.from_numpy(dequantize(flat.numpy(), ggml_type).reshape(-1, columns).copy())
