"""The state of a running job in a few fields, folded from its events."""

from __future__ import annotations

import msgspec

from engine.events import (
    AnyEvent,
    GuardTripped,
    Job,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    StopRequested,
)

STAGES = ("verifying", "converting", "installing")
"""Work of a download job other than downloading."""


def download_stage(progress: Progress) -> str:
    """What a download job does: downloading, verifying, converting or installing."""
    stage = progress.label.rpartition(": ")[2]
    if stage in STAGES:
        return stage
    if progress.task.startswith("verify"):
        return "verifying"
    complete = progress.total is not None and progress.done >= progress.total
    return "verifying" if complete and not progress.finished else "downloading"


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A running job, as the top bar shows it."""

    job: Job
    run_id: str
    pid: int
    """Process id of the runner."""
    status: str = "running"
    """running, paused, stopping, restarting, stalled or stopped (by SIGSTOP)."""
    preparing: bool = True
    """Whether it has taken no step since it was started or resumed."""
    restarts: int = 0
    """How often the worker was restarted."""
    preset: str = ""
    phase: int | None = None
    phases: int = 0
    phase_name: str = ""
    step: int = 0
    task_label: str = ""
    """Label of the task in progress; empty while the job takes training steps."""
    progress: float | None = None
    """Fraction done of the whole run, or of the task in progress, 0 to 1."""
    eta: float | None = None
    """Seconds."""

    def after(self, event: AnyEvent) -> JobInfo:
        """The job after `event`; pure."""
        replace = msgspec.structs.replace
        match event:
            case RunStarted():
                return replace(
                    self,
                    status="running",
                    preparing=True,
                    preset=event.preset,
                    step=event.resumed_from or 0,
                    task_label="",
                    progress=None,
                    eta=None,
                )
            case PhaseStarted():
                return replace(
                    self,
                    phase=event.phase,
                    phases=event.phases,
                    phase_name=event.name,
                    task_label="",
                )
            case StepDone():
                return replace(
                    self,
                    step=event.step,
                    preparing=False,
                    task_label="",
                    progress=event.run_progress,
                    eta=event.run_eta,
                )
            case Progress() if event.task.count(":") == 2:
                return self  # one file of an expert; the expert's own progress is reported too
            case Progress():
                return self._after_progress(event)
            case RunPaused():
                return replace(self, status="paused")
            case RunResumed():
                return replace(self, status="running")
            case GuardTripped(guard="stall"):
                known = event.action in ("stopped", "stalled")
                return replace(self, status=event.action if known else "running")
            case GuardTripped(guard="worker"):
                restarts = int(event.value or self.restarts + 1)
                return replace(
                    self, status="restarting", restarts=restarts, task_label="", progress=None
                )
            case StopRequested():
                return self if event.finish else replace(self, status="stopping")
            case RunEnded():
                return replace(self, status="stopping")
        return self

    def _after_progress(self, event: Progress) -> JobInfo:
        if event.finished:
            # What is left of it is not the progress of what comes next.
            return msgspec.structs.replace(self, task_label="", progress=None, eta=None)
        fraction = event.done / event.total if event.total else None
        label = event.label
        if self.job == "download" and (stage := download_stage(event)) != "downloading":
            # What the bytes of the download add up to says nothing about this.
            known = event.label.endswith(stage)
            label, fraction = f": {stage}", fraction if known else None
        return msgspec.structs.replace(self, task_label=label, progress=fraction, eta=event.eta)
