"""Owns what stands in the terminal once the app is closed: what goes on, and what can come next."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

from engine.events import Job
from engine.run.job import JOBS
from engine.workspace import Workspace


def command(ws: Workspace, *words: str) -> str:
    """The command line of `gladius_train WORDS` on this root, from the folder one is in."""
    beside = shutil.which("gladius_train") is None and Path("gladius_train").is_file()
    here = Workspace.find().root == ws.root
    root = [] if here else ["--root", str(ws.root)]
    return shlex.join(["./gladius_train" if beside else "gladius_train", *root, *words])


def farewell(ws: Workspace, seen: Collection[str]) -> list[str]:
    """Lines about the jobs that run, and about those that ran while the app was open (`seen`)."""
    from engine.run.lock import lock_owner
    from engine.run.state import read_state

    lines: list[str] = []
    running: list[Job] = [job for job in JOBS if lock_owner(ws, job)]
    for job in running:
        owner = lock_owner(ws, job)
        pid = f" (pid {owner.pid})" if owner is not None else ""
        lines.append(f"The {JOBS[job].title} goes on{pid}.")
    if running:
        shows = "dashboard" if running[0] == "train" else ""
        lines.append(f"  {command(ws, *filter(None, [shows]))}  shows it again")
        jobs = ["--job", running[0]] if len(running) > 1 else []
        lines.append(f"  {command(ws, 'stop', *jobs)}  ends it; what it has done is kept")
    elif "train" in seen:
        state = read_state(ws)
        if state.status == "completed":
            lines = [
                f"The training is completed, at step {state.step:,}; the model lies in "
                f"{ws.model_dir}.",
                f"  {command(ws, 'validate')}  checks it",
                f"  {command(ws, 'export')}  writes it as GGUF",
            ]
        elif state.status in ("paused", "failed"):
            word = "stopped" if state.status == "paused" else "failed"
            lines = [
                f"The training {word} at step {state.step:,}.",
                f"  {command(ws, 'resume')}  goes on from its newest checkpoint",
            ]
    return lines
