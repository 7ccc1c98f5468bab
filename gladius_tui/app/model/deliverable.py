"""Owns what the Export and Validate screens find on the disk: the finished model, checkpoints, and
whether this build has the command.
"""

from __future__ import annotations

import msgspec

from engine.checkpoint.layout import best_checkpoints, list_checkpoints
from engine.hardware import disk_free
from engine.run.state import RunState, read_state
from engine.workspace import Workspace


class Deliverable(msgspec.Struct, frozen=True, kw_only=True):
    """What can be delivered."""

    finished: bool
    """Whether models/gladius_primary holds a model."""
    steps: tuple[int, ...]
    """Of the checkpoints, the newest first."""
    best: bool
    gguf: tuple[str, ...]
    """Names of the GGUF files beside the model."""
    state: RunState
    free: int
    """Free bytes of the disk."""

    @property
    def any(self) -> bool:
        return self.finished or bool(self.steps)


def find_deliverable(ws: Workspace) -> Deliverable:
    """Look what is there; names only, nothing is verified."""
    folder = ws.checkpoints_dir
    steps = [info.step for info in reversed(list_checkpoints(folder))]
    model = ws.model_dir
    return Deliverable(
        finished=(model / "config.json").is_file(),
        steps=tuple(steps),
        best=bool(best_checkpoints(folder)),
        gguf=tuple(sorted(path.name for path in model.glob("*.gguf"))) if model.is_dir() else (),
        state=read_state(ws),
        free=disk_free(ws.root),
    )


def has_command(name: str) -> bool:
    """Whether this build has the command."""
    import gladius_tui.commands  # noqa: F401  (registers them)
    from gladius_tui.shell import app

    return name in app.commands


def sources(found: Deliverable) -> list[tuple[str, str]]:
    """What can be chosen as the source: (what is shown, the value of --checkpoint; "" for none)."""
    values = [("the finished model", "")] if found.finished else []
    if found.steps:
        values.append((f"latest checkpoint (step {found.steps[0]:,})", "latest"))
    if found.best:
        values.append(("best checkpoint", "best"))
    values += [(f"checkpoint of step {step:,}", str(step)) for step in found.steps]
    return values or [("nothing is there yet", "")]
