"""Training time without pauses, steps per second, and estimates of the end of phase and run."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TypedDict

from engine.distill.train.decisions import clock_progress
from engine.distill.train.phases import Schedule
from engine.run.job import JobContext

_WINDOW = 50
"""Steps over which the speed is averaged."""


@dataclass(frozen=True)
class Forecast:
    """Progress, 0 to 1, and seconds to the end of phase and run; None if not known."""

    phase_progress: float | None
    run_progress: float | None
    phase_eta: float | None
    run_eta: float | None


class Clock(TypedDict):
    """Arguments of `decisions.clock_decisions` and `clock_progress`."""

    elapsed: float
    hours: float
    seconds_per_step: float
    save_seconds: float


class Pace:
    """Measures with the monotonic clock, so that changes of the system clock have no effect."""

    def __init__(self, ctx: JobContext, previous_seconds: float) -> None:
        """previous_seconds: unpaused training time so far, all attempts together."""
        self._ctx = ctx
        self._previous = previous_seconds
        self._began = time.monotonic()
        self._paused_before = ctx.paused_seconds
        self._marks: deque[float] = deque([previous_seconds], maxlen=_WINDOW + 1)
        self.save_seconds = 5.0
        """Duration of the last checkpoint."""

    @property
    def training_seconds(self) -> float:
        """Unpaused training time of the run."""
        paused = self._ctx.paused_seconds - self._paused_before
        return self._previous + time.monotonic() - self._began - paused

    def step_done(self) -> None:
        """Record the end of a step."""
        self._marks.append(self.training_seconds)

    @property
    def seconds_per_step(self) -> float:
        """Recent mean, including evaluations and checkpoints; 0 before the first step."""
        steps = len(self._marks) - 1
        return (self._marks[-1] - self._marks[0]) / steps if steps else 0.0

    def clock(self, hours: float) -> Clock:
        """The measurements for decisions by the clock."""
        return {
            "elapsed": self.training_seconds,
            "hours": hours,
            "seconds_per_step": self.seconds_per_step,
            "save_seconds": 2 * self.save_seconds,
        }

    def forecast(self, schedule: Schedule, step: int) -> Forecast:
        """The forecast after `step` steps."""
        seconds_per_step = self.seconds_per_step
        phase_progress, run_progress = schedule.progress(step)
        last = schedule.bounds(schedule.phase_at(step))[1]
        end = schedule.end_step
        phase_eta = None if last is None else max(0, last - step) * seconds_per_step
        run_eta = None if end is None else max(0, end - step) * seconds_per_step
        hours = schedule.config.schedule.hours
        if hours is not None and end is None:
            clock = self.clock(hours)
            by_clock = clock_progress(schedule, step, **clock)
            phase_progress = by_clock[0] if phase_progress is None else phase_progress
            run_progress = by_clock[1]
            run_eta = max(0.0, hours * 3600 - clock["elapsed"])
        return Forecast(phase_progress, run_progress, phase_eta, run_eta)
