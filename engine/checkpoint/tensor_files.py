"""Reading and writing named tensors as safetensors files, streamed and with their SHA-256.

safetensors' own writer returns no digest of what it was given, does not raise OSError on a full
disk, and copies all GPU tensors at once; this one holds one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from engine.checkpoint.hashing import FileRecord, no_heartbeat, write_file

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], heartbeat: Callable[[], None] = no_heartbeat
) -> FileRecord:
    """Write a new safetensors file durably.

    A tensor under two names (tied weights) is stored once; the other name is in the file's
    metadata as an alias.
    """
    kept, aliases = _distinct(tensors)
    # Wider types first keep every tensor aligned; names make the file a function of its content.
    names = sorted(kept, key=lambda name: (-kept[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **aliases}}
    offset = 0
    for name in names:
        tensor = kept[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            flat = kept[name].detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data

    return write_file(path, pieces(), heartbeat)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file on the CPU, aliases included.

    They are memory-mapped: pages are read when they are copied from, and dropped under memory
    pressure. Copy tensors that must outlive the file.
    """
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    for alias, name in metadata.items():
        if name in tensors and alias not in tensors:
            tensors[alias] = tensors[name]
    return tensors


def tensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors in a file; a tensor under two names counts once."""
    kept, _ = _distinct(tensors)
    return sum(t.numel() * t.element_size() for t in kept.values())


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of a tensor that holds NaN or an infinity; None when there is none."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            # One pass without a mask as large as the tensor; aminmax passes NaN on.
            low, high = torch.aminmax(tensor.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                return name
    return None


def _distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and aliases: the name left out -> the name kept."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            kept[name] = tensor
    return kept, aliases
