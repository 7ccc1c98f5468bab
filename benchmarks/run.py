"""Measures every figure and prints one JSON object on standard output: `python -m benchmarks.run`.

Each ratio stands at the top; under "bounds" the most that it may be, under "detail" how it came
about (smallest and largest of the pairwise ratios, their count, the medians of both sides, in
seconds or bytes). `--only NAME` (repeatable) measures a part.
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
    projection_share,
    status_start,
)
from benchmarks.timing import Figure, say
from benchmarks.workbench import Workbench, ready_expert


class Run:
    """The figures by name; what several need is prepared once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def bench(self) -> Workbench:
        say("preparing a nano run on SmolLM2")
        return Workbench(self.folder)

    @property
    def figures(self) -> dict[str, Callable[[], dict[str, Figure]]]:
        return {
            "export": lambda: export.measure(self.folder),
            "status_start": lambda: status_start.measure(self.folder),
            "loss_memory": loss_memory.measure,
            "projection_share": lambda: projection_share.measure(self.bench),
            "cached_step": lambda: cached_step.measure(self.bench),
            "online_step": lambda: online_step.measure(self.bench),
            "app_history": lambda: app_history.measure(self.folder),
            "app_live": lambda: app_live.measure(self.folder, Path(ready_expert().repo)),
        }


def machine() -> dict[str, Any]:
    """What the figures are measured on, and how much it has to do before."""
    return {
        "cpus": os.cpu_count(),
        "processor": platform.machine(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    measured_on = machine()
    if measured_on["load_average"] > 0.3 * (os.cpu_count() or 1):
        say(
            f"other programs load this machine ({measured_on['load_average']:.1f} of "
            f"{os.cpu_count()} processors): times are longer, ratios less certain"
        )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--only", action="append", choices=run.figures, metavar="NAME")
        wanted = parser.parse_args().only or list(run.figures)
        measured: dict[str, Figure] = {}
        for name in wanted:
            began = time.perf_counter()
            for figure, value in run.figures[name]().items():
                measured[figure] = value
                limit = "" if value.bound is None else f" (at most {value.bound:.3f})"
                say(f"{figure}: {value.value:.3f}{limit}")
            say(f"  {time.perf_counter() - began:.0f} s")
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
