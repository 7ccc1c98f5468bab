"""What the Export and Validate screens can use: the finished model, checkpoints, GGUF files."""

from __future__ import annotations

import msgspec

from engine.checkpoint.layout import best_checkpoints, list_checkpoints
from engine.hardware import disk_free
from engine.run.state import RunState, read_state
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
    state: RunState
    free: int
    """Free bytes of the disk."""

    @property
    def any(self) -> bool:
        """Whether there is a model or a checkpoint."""
        return self.finished or bool(self.steps)


def find_model_sources(ws: Workspace) -> ModelSources:
    """Look up the models by their names; nothing is verified."""
    folder = ws.checkpoints_dir
    steps = [info.step for info in reversed(list_checkpoints(folder))]
    model = ws.model_dir
    return ModelSources(
        finished=(model / "config.json").is_file(),
        steps=tuple(steps),
        best=bool(best_checkpoints(folder)),
        gguf=tuple(sorted(path.name for path in model.glob("*.gguf"))) if model.is_dir() else (),
        state=read_state(ws),
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
