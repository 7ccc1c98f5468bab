"""Owns the run's clock: unpaused time, speed, and the forecast of the ends of phase and run."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from engine.distill.train.phases import Schedule, clock_progress
from engine.run.job import JobContext

_WINDOW = 50  # steps whose time makes the speed


@dataclass(frozen=True)
class Forecast:
    """Progress, 0 to 1, and seconds to the ends of phase and run; None where not known."""

    phase_progress: float | None
    run_progress: float | None
    phase_eta: float | None
    run_eta: float | None


class Pace:
    """Measures by the monotonic clock: setting the machine's clock changes nothing."""

    def __init__(self, ctx: JobContext, former_seconds: float) -> None:
        """former_seconds: unpaused worker time before this moment, all attempts together."""
        self._ctx = ctx
        self._former = former_seconds
        self._began = time.monotonic()
        self._paused_before = ctx.paused_seconds
        self._marks: deque[float] = deque([former_seconds], maxlen=_WINDOW + 1)
        self.save_seconds = 5.0
        """What the last checkpoint took."""

    @property
    def training_seconds(self) -> float:
        """Unpaused worker time of the whole run."""
        paused = self._ctx.paused_seconds - self._paused_before
        return self._former + time.monotonic() - self._began - paused

    def step_done(self) -> None:
        self._marks.append(self.training_seconds)

    @property
    def seconds_per_step(self) -> float:
        """Recent mean, evaluations and checkpoints included; 0 before the first step."""
        steps = len(self._marks) - 1
        return (self._marks[-1] - self._marks[0]) / steps if steps else 0.0

    def clock(self, hours: float) -> dict[str, float]:
        """What decisions by the clock need to know (phases.clock_decisions)."""
        return {
            "elapsed": self.training_seconds,
            "hours": hours,
            "seconds_per_step": self.seconds_per_step,
            "save_seconds": 2 * self.save_seconds,
        }

    def forecast(self, schedule: Schedule, step: int) -> Forecast:
        """After `step` steps."""
        pace = self.seconds_per_step
        of_phase, of_run = schedule.progress(step)
        last = schedule.bounds(schedule.phase_at(step))[1]
        end = schedule.end_step
        phase_eta = None if last is None else max(0, last - step) * pace
        run_eta = None if end is None else max(0, end - step) * pace
        hours = schedule.config.schedule.hours
        if hours is not None and end is None:
            clock = self.clock(hours)
            by_clock = clock_progress(schedule, step, **clock)
            of_phase = by_clock[0] if of_phase is None else of_phase
            of_run = by_clock[1]
            run_eta = max(0.0, hours * 3600 - clock["elapsed"])
        return Forecast(of_phase, of_run, phase_eta, run_eta)
