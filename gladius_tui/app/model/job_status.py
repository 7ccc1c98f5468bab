"""The text of the top bar: which jobs run, or the state of the training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from textual.content import Content

from engine.events import Job
from engine.run.job import JOBS, MAX_RESTARTS
from gladius_tui.app.model.job_info import STAGES, JobInfo

if TYPE_CHECKING:
    from engine.run.state import RunState

# A sign and a colour for each state; the word says the same.
_SIGNS = {
    "running": ("●", "$text-success"),
    "paused": ("‖", "$text-warning"),
    "stalled": ("!", "$text-error"),
    "stopped": ("!", "$text-error"),
    "stopping": ("○", "$text-warning"),
    "restarting": ("!", "$text-warning"),
}
_STATUS = {"stopped": "suspended"}


def _status_word(info: JobInfo) -> str:
    if info.status == "running":
        stage = info.task_label.rpartition(": ")[2]
        if info.job == "download" and stage in STAGES:
            return stage
        # The Dashboard shows which task it is.
        return "preparing" if info.job == "train" and info.preparing else JOBS[info.job].activity
    status = _STATUS.get(info.status, info.status)
    if info.status == "restarting":
        status = f"restarting {info.restarts}/{MAX_RESTARTS}"
    return status if info.job == "train" else f"{info.job} {status}"


def job_content(info: JobInfo, width: int) -> Content:
    """A running job in about `width` cells."""
    sign, colour = _SIGNS.get(info.status, ("●", "$foreground"))
    parts = [_status_word(info)]
    if info.job == "train" and info.step:
        parts.append(f"step {info.step:,}")
    if info.progress is not None:
        parts.append(f"{info.progress:.0%}")
    while len(parts) > 1 and sum(map(len, parts)) + 2 * len(parts) > width:
        parts.pop()
    return Content.assemble((sign, colour), " ", "  ".join(parts))


def idle_content(state: RunState | None, width: int) -> Content:
    """The state of the training run while no job runs, in about `width` cells."""
    if state is None:
        return Content("")
    if state.status == "not_started":
        return Content.assemble(("○", "$foreground 60%"), " no run yet")
    if state.status == "completed":
        return Content.assemble(("✓", "$text-success"), f" finished at step {state.step:,}")
    if state.status == "stopped":
        resumable = state.last_checkpoint_step
        texts = [f"stopped at step {state.step:,}", "stopped"]
        if resumable is not None:
            texts.insert(0, f"stopped (resumable from step {resumable:,})")
        text = next((text for text in texts if len(text) + 2 <= width), texts[-1])
        return Content.assemble(("○", "$text-warning"), " ", text)
    # A run whose file says `training` while no runner has its lock was killed.
    return Content.assemble(("✗", "$text-error"), f" failed at step {state.step:,}")


def jobs_content(jobs: Mapping[Job, JobInfo], state: RunState | None, width: int) -> Content:
    """All running jobs, or the state of the training run, in about `width` cells."""
    if not jobs:
        return idle_content(state, width)
    room = width // len(jobs) - 2
    return Content("   ").join([job_content(info, room) for info in jobs.values()])
