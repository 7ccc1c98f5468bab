"""Send a run's metrics to Trackio, which keeps them in a local database and shows them with
`trackio show`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from engine.run.sinks.sink import RunInfo

_PROJECT = "gladius"


class TrackioSink:
    """One run of Trackio."""

    def __init__(self, run: RunInfo) -> None:
        # Read when it is imported.
        os.environ.setdefault("TRACKIO_DIR", str(run.folder))
        trackio: Any = importlib.import_module("trackio")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=run.run_id if run.name == run.run_id else f"{run.name} ({run.run_id})",
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def log(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, time: float, name: str, text: str) -> None:
        pass

    def close(self, status: str) -> None:
        self._run.finish()


def open_sink(run: RunInfo) -> TrackioSink:
    """Start, or continue, the run of this id."""
    run.folder.mkdir(parents=True, exist_ok=True)
    return TrackioSink(run)
