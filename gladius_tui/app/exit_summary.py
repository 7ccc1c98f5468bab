"""The lines that are printed in the terminal when the app is closed: what is still running, and
what to do next.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

from engine.events import Job
from engine.run.job import JOBS
from engine.workspace import Workspace


def shell_command(ws: Workspace, *words: str) -> str:
    """The command line of `gladius_train WORDS` on this root, from the current folder."""
    in_folder = shutil.which("gladius_train") is None and Path("gladius_train").is_file()
    is_default_root = Workspace.find().root == ws.root
    root = [] if is_default_root else ["--root", str(ws.root)]
    return shlex.join(["./gladius_train" if in_folder else "gladius_train", *root, *words])


def exit_summary(ws: Workspace, jobs_seen: Collection[str]) -> list[str]:
    """Lines about the jobs that run, or about the training run that ended while the app was open.

    Args:
        jobs_seen: jobs that ran while the app was open.
    """
    from engine.run.lock import lock_owner

    running: list[Job] = [job for job in JOBS if lock_owner(ws, job)]
    if not running:
        return _run_lines(ws) if "train" in jobs_seen else []
    lines: list[str] = []
    for job in running:
        owner = lock_owner(ws, job)
        pid = f" (pid {owner.pid})" if owner is not None else ""
        lines.append(f"The {JOBS[job].title} is still running{pid}.")
    mode = "dashboard" if running[0] == "train" else ""
    lines.append(f"  {shell_command(ws, *filter(None, [mode]))}  to watch it")
    job = ["--job", running[0]] if len(running) > 1 else []
    lines.append(f"  {shell_command(ws, 'stop', *job)}  to stop it; its progress is saved")
    return lines


def _run_lines(ws: Workspace) -> list[str]:
    """How the training run ended, and what to do next."""
    from engine.run.state import read_state

    state = read_state(ws)
    if state.status == "completed":
        return [
            f"Training finished at step {state.step:,}. The model is in {ws.model_dir}.",
            f"  {shell_command(ws, 'validate')}  to check it",
            f"  {shell_command(ws, 'export')}  to write it as a GGUF file",
        ]
    if state.status in ("stopped", "failed"):
        return [
            f"Training {state.status} at step {state.step:,}.",
            f"  {shell_command(ws, 'resume')}  to resume from its newest checkpoint",
        ]
    return []
