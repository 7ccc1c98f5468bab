"""Run the benchmarks and print one JSON object on standard output: `python -m benchmarks.run`.

The object has each figure, under "bounds" its largest allowed value, and under "detail" the
smallest and largest of the pairwise ratios, their count and the medians of numerator and
denominator, in seconds or bytes. `--only NAME` (repeatable) selects benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    app_history,
    app_live,
    cached_step,
    export,
    loss_memory,
    online_step,
    prepare_text,
    projection_share,
    status_start,
)
from benchmarks.timing import Figure, narrate
from benchmarks.workbench import Workbench, ready_expert


class Run:
    """The benchmarks by name; the workbench that several need is prepared once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def bench(self) -> Workbench:
        narrate("preparing a nano run on SmolLM2")
        return Workbench(self.folder)

    @property
    def figures(self) -> dict[str, Callable[[], dict[str, Figure]]]:
        return {
            "export": lambda: export.measure(self.folder),
            "status_start": lambda: status_start.measure(self.folder),
            "loss_memory": loss_memory.measure,
            "prepare_text": lambda: prepare_text.measure(self.folder),
            "projection_share": lambda: projection_share.measure(self.bench),
            "cached_step": lambda: cached_step.measure(self.bench),
            "online_step": lambda: online_step.measure(self.bench),
            "app_history": lambda: app_history.measure(self.folder),
            "app_live": lambda: app_live.measure(self.folder, Path(ready_expert().repo)),
        }


def machine() -> dict[str, Any]:
    """The machine and its load before the measurements."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    measured_on = machine()
    if measured_on["load_average"] > 0.3 * (os.cpu_count() or 1):
        narrate(
            f"other programs use this machine (load {measured_on['load_average']:.1f} on "
            f"{os.cpu_count()} CPUs): times are longer and ratios less certain"
        )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--only", action="append", choices=run.figures, metavar="NAME")
        names = parser.parse_args().only or list(run.figures)
        measured: dict[str, Figure] = {}
        for name in names:
            began = time.perf_counter()
            for figure, value in run.figures[name]().items():
                measured[figure] = value
                limit = "" if value.bound is None else f" (at most {value.bound:.3f})"
                narrate(f"{figure}: {value.value:.3f}{limit}")
            narrate(f"  {time.perf_counter() - began:.0f} s")
    result: dict[str, Any] = {name: round(f.value, 4) for name, f in measured.items()}
    result["bounds"] = {name: f.bound for name, f in measured.items() if f.bound is not None}
    result["machine"] = measured_on
    result["detail"] = _rounded({name: f.detail for name, f in measured.items()})
    print(json.dumps(result, indent=2))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
