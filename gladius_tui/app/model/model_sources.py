"""What the Export and Validate screens can use: the finished model, checkpoints, GGUF files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec

from engine.checkpoint.layout import MODEL, best_checkpoints, list_checkpoints
from engine.hardware import disk_free
from engine.workspace import Workspace


class ModelSources(msgspec.Struct, frozen=True, kw_only=True):
    """The models on disk."""

    finished: bool
    """Whether models/gladius_primary holds a model."""
    steps: tuple[int, ...]
    """Steps of the checkpoints, the newest first."""
    best: bool
    """Whether there is a copy of the best weights."""
    gguf: tuple[str, ...]
    """Names of the GGUF files in the model's folder."""
    parameters: dict[str, int]
    """Of each model, by the value of --checkpoint (see `source_options`)."""
    free: int
    """Free bytes of the disk."""

    @property
    def any(self) -> bool:
        """Whether there is a model or a checkpoint."""
        return self.finished or bool(self.steps)


def find_model_sources(ws: Workspace) -> ModelSources:
    """Look up the models by their names; nothing is verified."""
    found = list(reversed(list_checkpoints(ws.checkpoints_dir)))
    best = best_checkpoints(ws.checkpoints_dir)
    steps = [info.step for info in found]
    model = ws.model_dir
    folders = {str(info.step): info.path for info in found}
    folders |= {"": model, **({"latest": found[0].path} if found else {})}
    folders |= {"best": best[-1]} if best else {}
    return ModelSources(
        finished=(model / "config.json").is_file(),
        steps=tuple(steps),
        best=bool(best),
        gguf=tuple(sorted(path.name for path in model.glob("*.gguf"))) if model.is_dir() else (),
        parameters={value: count_parameters(path) for value, path in folders.items()},
        free=disk_free(ws.root),
    )


def source_options(sources: ModelSources) -> list[tuple[str, str]]:
    """(label, value of --checkpoint) of each source; the value is "" for the finished model."""
    options = [("the finished model", "")] if sources.finished else []
    if sources.steps:
        options.append((f"latest checkpoint (step {sources.steps[0]:,})", "latest"))
    if sources.best:
        options.append(("best checkpoint", "best"))
    options += [(f"checkpoint of step {step:,}", str(step)) for step in sources.steps]
    return options or [("no model yet", "")]


_MAX_HEADER = 100 << 20
"""Bytes of a safetensors header; the length of another file's first bytes is absurd."""


def count_parameters(folder: Path) -> int:
    """Weights in a folder's safetensors files, from their headers; 0 where there are none."""
    files = [folder / MODEL] if (folder / MODEL).is_file() else sorted(folder.glob("*.safetensors"))
    try:
        return sum(_count(path) for path in files)
    except (OSError, ValueError, TypeError, AttributeError):
        return 0  # a damaged file: the job says what is wrong with it


def _count(path: Path) -> int:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    return sum(
        math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
    )
