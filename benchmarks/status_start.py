"""`status_start_ratio`: the duration of `status` and of `--help`, relative to 3 times that of a
Python that imports sqlite3 and json, plus 100 ms. The slower of the two commands counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.timing import Figure, interleave, ratio
from engine.events import PhasePlan
from engine.run.state import RunState
from engine.workspace import Workspace, write_json

BOUND = 1.00
REPETITIONS = 11
LAUNCHER = Path(__file__).resolve().parent.parent / "gladius_train"


def measure(root: Path) -> dict[str, Figure]:
    """`root`: a workspace; the state of a stopped run is written to it."""
    _write_state(Workspace.find(root))
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


def _write_state(workspace: Workspace) -> None:
    """Write the state of a run that stopped in its first phase."""
    workspace.create()
    plan = tuple(
        PhasePlan(index=n, name=name, expert="smollm2", share=0.5)
        for n, name in enumerate(("SmolLM2", "unified"), 1)
    )
    state = RunState(
        status="paused",
        run_id="benchmark",
        preset="nano",
        phase=1,
        phases=2,
        phase_name="SmolLM2",
        current_expert="smollm2",
        plan=plan,
        step=120,
        tokens_seen=240_000,
        loss=4.0,
        bits_per_byte=2.2,
        current_params=6_500_000,
        target_params=6_500_000,
        started_at=1.0e9,
        updated_at=1.0e9,
    )
    write_json(workspace.state_file, state)
