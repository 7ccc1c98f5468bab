"""Send a run's metrics to Weights & Biases; without an account they are kept for `wandb sync`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from engine.run.sinks.sink import RunInfo

wandb: Any = importlib.import_module("wandb")
_PROJECT = "gladius"


class WandbSink:
    """One run of Weights & Biases; a resumed run continues it."""

    def __init__(self, run: RunInfo) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=run.run_id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            mode=_mode(),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    def log(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, time: float, name: str, text: str) -> None:
        pass  # its tables would be uploaded again with every sample

    def close(self, status: str) -> None:
        self._run.finish(exit_code=0 if status in ("completed", "stopped") else 1)


def _mode() -> Any:
    """WANDB_MODE, else online where an account is configured; never a question at the terminal."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    return "online" if wandb.api.api_key else "offline"


def open_sink(run: RunInfo) -> WandbSink:
    """Start, or continue, the run of this id."""
    run.folder.mkdir(parents=True, exist_ok=True)
    return WandbSink(run)
