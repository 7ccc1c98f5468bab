"""Check that a folder is a complete model: config, tokenizer, index and safetensors headers.

Weights are not read, nothing is unpickled and torch is not imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def find_problem(folder: Path) -> str | None:
    """Why the folder can't be loaded as a model, in a few words; None if it can."""
    config = _json_object(folder / "config.json")
    if isinstance(config, str):
        return config
    if not (folder / "tokenizer.json").is_file():
        return "tokenizer.json is missing"
    index = folder / INDEX
    if not index.exists():
        names: dict[str, set[str]] = {"model.safetensors": set()}
        if not (folder / "model.safetensors").exists() and _has_pickles(folder):
            return "its weights are pickled (.bin, .pt); only safetensors are loaded"
    else:
        found = _json_object(index)
        if isinstance(found, str):
            return found
        weights = found.get("weight_map")
        if not isinstance(weights, dict) or not weights:
            return f"{INDEX} lists no weights"
        names = {}
        for tensor, name in weights.items():
            if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".."):
                return f"{INDEX} names a file outside the folder"
            names.setdefault(name, set()).add(tensor)
    for name, tensors in sorted(names.items()):
        header = tensors_of(folder / name)
        if isinstance(header, str):
            return header
        missing = tensors - header.keys()
        if missing:
            return f"{name} lacks the tensor {min(missing)} that {INDEX} lists"
    return None


def tensors_of(path: Path) -> dict[str, Any] | str:
    """The tensors of a safetensors file by name, from its header; a text that names the problem
    if the file is damaged.

    The header must describe the file's bytes without gap or overlap, up to the last byte.
    """
    if path.exists() and not path.is_file():
        return f"{path.name} is not a file"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER_BYTES:
                # The first bytes of a zip (torch.save) or a pickle give a huge header length.
                if start[:2] == b"PK" or start[:1] == b"\x80":
                    return f"{path.name} is a pickle; only safetensors are loaded"
                return f"{path.name} is not a safetensors file"
            if length > size - 8:
                return f"{path.name} is truncated"
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = []
        for entry in header.values():
            first, last = entry["data_offsets"]
            spans.append((int(first), int(last), _tensor_bytes(entry)))
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path.name} is not a safetensors file"
    end = 0
    for first, last, needed in sorted(spans, key=lambda span: span[:2]):
        if first != end or last - first != (last - first if needed is None else needed):
            return f"{path.name} has a header that does not match its data"
        end = last
    expected = 8 + length + end
    return header if size == expected else f"{path.name} has {size:,} of {expected:,} bytes"


def _tensor_bytes(entry: dict[str, Any]) -> int | None:
    """Bytes of a tensor by its shape and dtype; None for a dtype that is not in `_BITS`."""
    elements = 1
    for length in entry["shape"]:
        if not isinstance(length, int) or length < 0:
            raise ValueError("not a shape")
        elements *= length
    bits = _BITS.get(entry["dtype"])
    return None if bits is None else elements * bits // 8


def _json_object(path: Path) -> dict[str, Any] | str:
    if path.exists() and not path.is_file():
        return f"{path.name} is not a file"  # reading a pipe would block
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, RecursionError):
        return f"{path.name} can't be read"
    return value if isinstance(value, dict) else f"{path.name} can't be read"


def _has_pickles(folder: Path) -> bool:
    try:
        return any(entry.suffix in PICKLES for entry in folder.iterdir())
    except OSError:
        return False
