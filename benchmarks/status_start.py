"""Owns `status_start_ratio`: how long `status` and `--help` take from the shell, against three
times a Python that imports sqlite3 and json, plus 100 ms. The slower of the two commands counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.timing import Figure, interleave, ratio

BOUND = 1.00
REPETITIONS = 11
LAUNCHER = Path(__file__).resolve().parent.parent / "gladius_train"


def measure(root: Path) -> dict[str, Figure]:
    """`root`: the workspace whose status is asked for."""
    environment = {**os.environ, "GLADIUS_ROOT": str(root)}

    def run(*command: str) -> None:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)

    seconds = interleave(
        {
            "python": lambda _: run(sys.executable, "-c", "import sqlite3, json"),
            "status": lambda _: run(str(LAUNCHER), "status"),
            "--help": lambda _: run(str(LAUNCHER), "--help"),
        },
        REPETITIONS,
    )
    allowed = [3 * plain + 0.1 for plain in seconds["python"]]
    figures = {name: ratio(seconds[name], allowed, BOUND) for name in ("status", "--help")}
    worst = max(figures.values(), key=lambda figure: figure.value)
    detail = {name: {"ratio": f.value, **f.detail} for name, f in figures.items()}
    return {"status_start_ratio": Figure(worst.value, BOUND, detail)}
