"""Read the files of a model folder without loading the model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine import small_files
from engine.checkpoint.tensor_files import first_non_finite
from engine.errors import GladiusError
from engine.small_files import Damaged

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w.-]+\.safetensors")


class BadModelFolder(Exception):
    """The folder cannot be read as a model; the message has the reason."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where the file is missing or damaged."""
    try:
        value = small_files.read_json(path)
    except (OSError, Damaged):
        return {}
    return value if isinstance(value, dict) else {}


def weight_files(folder: Path) -> list[Path]:
    """The weight files in order, whether they exist or not.

    Raises BadModelFolder for a damaged index.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    try:
        index = small_files.read_json(folder / INDEX)
        names = sorted(set(index["weight_map"].values()))
    except (Damaged, KeyError, AttributeError, TypeError) as error:
        raise BadModelFolder(f"{INDEX} cannot be read ({error})") from error
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise BadModelFolder(f"{INDEX} names {name!r}, which is not a file of this folder")
    return [folder / name for name in names]


def combined_weights_digest(folder: Path, digests: Mapping[str, str]) -> str:
    """One SHA-256 for all weight files, from `digests` by file name; "" where there are none."""
    try:
        names = [path.name for path in weight_files(folder)]
    except BadModelFolder:
        return ""
    found = [digests[name] for name in names if name in digests]
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all weights, one at a time.

    Raises OSError, SafetensorError, BadModelFolder.
    """
    for path in weight_files(folder):
        # Open the file for each tensor: an open file keeps every page that was ever read.
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)


@dataclass
class TensorSurvey:
    """Result of one pass over all tensors.

    Attributes:
        tensors, parameters: how many there are.
        shapes: by tensor name.
        non_finite: a line for each tensor with values that are not finite.
        error: why the pass ended early; empty when it read every tensor.
    """

    tensors: int = 0
    parameters: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    non_finite: list[str] = field(default_factory=list)
    error: str = ""


def survey_tensors(
    tensors: Iterator[tuple[str, Tensor]], heartbeat: Callable[[str], None]
) -> TensorSurvey:
    """Read every tensor once: shape, size, and whether all values are finite."""
    survey = TensorSurvey()
    try:
        for name, tensor in tensors:
            heartbeat("reading tensors")
            survey.tensors += 1
            survey.parameters += tensor.numel()
            survey.shapes[name] = tuple(tensor.shape)
            if first_non_finite({name: tensor}) is not None:
                count = int((~torch.isfinite(tensor)).sum())
                survey.non_finite.append(f"{name}: {count:,} of {tensor.numel():,} values")
    except (OSError, SafetensorError, BadModelFolder, GladiusError, ValueError) as error:
        survey.error = " ".join(str(error).split())
    return survey
