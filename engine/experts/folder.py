"""Owns whether a folder is a whole model by its form: config, tokenizer, index, headers of the
weights. No weight is read, nothing is unpickled, no library that computes is imported.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_MOST_HEADER = 100_000_000  # the format's own limit, in bytes
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def lacking(folder: Path) -> str | None:
    """What the folder lacks to be loaded as a model, in a few words; None: nothing."""
    config = _json_object(folder / "config.json")
    if isinstance(config, str):
        return config
    if not (folder / "tokenizer.json").is_file():
        return "tokenizer.json is missing"
    index = folder / INDEX
    if not index.exists():
        names: dict[str, set[str]] = {"model.safetensors": set()}
        if not (folder / "model.safetensors").exists() and _has_pickles(folder):
            return "its weights are pickled (.bin, .pt), and only safetensors are loaded"
    else:
        found = _json_object(index)
        if isinstance(found, str):
            return found
        weights = found.get("weight_map")
        if not isinstance(weights, dict) or not weights:
            return f"{INDEX} names no weights"
        names = {}
        for tensor, name in weights.items():
            if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".."):
                return f"{INDEX} names a file outside the folder"
            names.setdefault(name, set()).add(tensor)
    for name, tensors in sorted(names.items()):
        header = tensors_of(folder / name)
        if isinstance(header, str):
            return header
        absent = tensors - header.keys()
        if absent:
            return f"{name} lacks {min(absent)}, which {INDEX} puts there"
    return None


def tensors_of(path: Path) -> dict[str, Any] | str:
    """A safetensors file's tensors by name, from its header; a text when it is not whole or none.

    The header must describe the file's bytes without gap or overlap, up to its last byte.
    """
    if path.exists() and not path.is_file():
        return f"{path.name} is no file"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MOST_HEADER:
                # A zip (what torch.save writes) or a bare pickle, read as a length, is immense.
                pickled = start[:2] == b"PK" or start[:1] == b"\x80"
                kind = "a pickle, no safetensors file; it is never loaded"
                return f"{path.name} is {kind if pickled else 'no safetensors file'}"
            if length > size - 8:
                return f"{path.name} is cut short"
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
        return f"{path.name} is no safetensors file"
    end = 0
    for first, last, needed in sorted(spans, key=lambda span: span[:2]):
        if first != end or last - first != (last - first if needed is None else needed):
            return f"{path.name} has a header that does not describe its bytes"
        end = last
    promised = 8 + length + end
    return header if size == promised else f"{path.name} has {size:,} of {promised:,} bytes"


def _tensor_bytes(entry: dict[str, Any]) -> int | None:
    """What the tensor takes by its shape; None for a type that is newer than this list."""
    elements = 1
    for length in entry["shape"]:
        if not isinstance(length, int) or length < 0:
            raise ValueError("a shape")
        elements *= length
    bits = _BITS.get(entry["dtype"])
    return None if bits is None else elements * bits // 8


def _json_object(path: Path) -> dict[str, Any] | str:
    if path.exists() and not path.is_file():
        return f"{path.name} is no file"  # a pipe would be waited for
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
