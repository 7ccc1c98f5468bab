"""Check that a folder is a complete model that can be an expert: config, tokenizer, index and
safetensors headers.

Weights are not read, nothing is unpickled and torch is not imported.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from engine.experts.model_checks import (
    ADAPTER,
    QUANTISED_FILES,
    adapter_problem,
    config_problem,
    quantised,
    quantised_tensor,
)

INDEX = "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class _Problem(Exception):
    """Why a folder can't be loaded, in a few words."""


def find_problem(folder: Path) -> str | None:
    """Why the folder can't be loaded as a model, in a few words; None if it can."""
    try:
        _check_folder(folder)
    except _Problem as problem:
        return str(problem)
    return None


def _check_folder(folder: Path) -> None:
    if (folder / ADAPTER).exists() and not (folder / "config.json").exists():
        raise _Problem(adapter_problem(_read_json_object(folder / ADAPTER)))
    config = _read_json_object(folder / "config.json")
    for name in QUANTISED_FILES:
        if (folder / name).exists():
            raise _Problem(quantised(name))
    if not (folder / "tokenizer.json").is_file():
        raise _Problem("tokenizer.json is missing")
    elements = count = 0
    for name, tensors in sorted(_tensors_by_file(folder).items()):
        found = _read_tensors(folder / name)
        missing = tensors - found.keys()
        if missing:
            raise _Problem(f"{name} lacks the tensor {min(missing)} that {INDEX} lists")
        if packed := sorted(tensor for tensor in found if quantised_tensor(tensor)):
            raise _Problem(quantised(f"tensor {packed[0]}"))
        elements += sum(math.prod(entry["shape"]) for entry in found.values())
        count += len(found)
    problem = config_problem(config, elements, count)
    if problem is not None:
        raise _Problem(problem)


def _tensors_by_file(folder: Path) -> dict[str, set[str]]:
    """Names of the weight files, each with the tensors that the index lists for it."""
    index = folder / INDEX
    if not index.exists():
        if not (folder / "model.safetensors").exists() and _has_pickles(folder):
            raise _Problem("its weights are pickled (.bin, .pt); only safetensors are loaded")
        return {"model.safetensors": set()}
    weights = _read_json_object(index).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise _Problem(f"{INDEX} lists no weights")
    files: dict[str, set[str]] = {}
    for tensor, name in weights.items():
        if not isinstance(name, str) or os.path.basename(name) != name or name in ("", ".."):
            raise _Problem(f"{INDEX} names a file outside the folder")
        files.setdefault(name, set()).add(tensor)
    return files


def _read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file by name, from its header.

    The header must describe the file's bytes without gap or overlap, up to the last byte.
    """
    if path.exists() and not path.is_file():
        raise _Problem(f"{path.name} is not a file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > _MAX_HEADER_BYTES:
                # The first bytes of a zip (torch.save) or a pickle give a huge header length.
                if start[:2] == b"PK" or start[:1] == b"\x80":
                    raise _Problem(f"{path.name} is a pickle; only safetensors are loaded")
                raise _Problem(f"{path.name} is not a safetensors file")
            if length > size - 8:
                raise _Problem(f"{path.name} is truncated")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        spans = []
        for entry in header.values():
            first, last = entry["data_offsets"]
            spans.append((int(first), int(last), _tensor_bytes(entry)))
    except FileNotFoundError:
        raise _Problem(f"{path.name} is missing") from None
    except OSError as error:
        raise _Problem(f"{path.name} can't be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Problem(f"{path.name} is not a safetensors file") from error
    end = 0
    for first, last, needed in sorted(spans, key=lambda span: span[:2]):
        if first != end or last - first != (last - first if needed is None else needed):
            raise _Problem(f"{path.name} has a header that does not match its data")
        end = last
    expected = 8 + length + end
    if size != expected:
        raise _Problem(f"{path.name} has {size:,} of {expected:,} bytes")
    return header


def _tensor_bytes(entry: dict[str, Any]) -> int | None:
    """Bytes of a tensor by its shape and dtype; None for a dtype that is not in `_BITS`."""
    elements = 1
    for length in entry["shape"]:
        if not isinstance(length, int) or length < 0:
            raise ValueError("not a shape")
        elements *= length
    bits = _BITS.get(entry["dtype"])
    return None if bits is None else elements * bits // 8


def _read_json_object(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise _Problem(f"{path.name} is not a file")  # reading a pipe would block
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _Problem(f"{path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _Problem(f"{path.name} can't be read") from error
    if not isinstance(value, dict):
        raise _Problem(f"{path.name} can't be read")
    return value


def _has_pickles(folder: Path) -> bool:
    try:
        return any(entry.suffix in PICKLES for entry in folder.iterdir())
    except OSError:
        return False
