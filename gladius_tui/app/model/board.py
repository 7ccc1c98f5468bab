"""Owns what the Dashboard knows of a run: the fold of its events, live or out of the history.

Pure: no widgets, no clock, no files. How it is written on the screen is `panes`'; the curves'
points are `curves`'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.events import (
    STUDENT,
    AnswersJudged,
    AnyEvent,
    CapabilitiesScored,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    GuardTripped,
    HardwareRead,
    LogLine,
    PhasePlan,
    PhaseStarted,
    ProbeRead,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gladius_tui.format import duration, size

Status = Literal[
    "preparing", "training", "paused", "stalled", "stopped", "completed", "ended", "failed"
]

READINGS = 120
"""Readings of the hardware that are kept for its sparklines: ten minutes at one in 5 s."""
LOG_LINES = 500

LOGGED = (
    *("RunStarted", "PhaseStarted", "DataReady", "AnswersJudged", "EvalDone", "CheckpointSaved"),
    *("CheckpointRejected", "GuardTripped", "LogLine", "RunPaused", "RunResumed", "RunEnded"),
)
"""Names of the events that make a line of the log."""


@dataclass
class ExpertRow:
    """One expert of the run: its share of the mix, its phase, and how well it is learnt."""

    name: str
    title: str
    share: float
    phase: int | None = None
    progress: float | None = None
    """Of its own phase, 0 to 1; None where the end is not known."""
    kl: float | None = None
    agreement: float | None = None
    bits_per_byte: float | None = None
    best_kl: float | None = None
    """Lowest KL of all evaluations so far."""

    @property
    def forgotten(self) -> float | None:
        """How far KL has risen above its lowest, as a share of that; None where not measured."""
        if self.kl is None or not self.best_kl:
            return None
        return max(0.0, self.kl / self.best_kl - 1.0)


@dataclass(frozen=True)
class LogEntry:
    """A line of the log."""

    time: float
    level: Literal["info", "good", "warning", "error"]
    text: str


@dataclass
class RunView:
    """A run as its events tell it; None wherever nothing was told.

    `changed` names what the events since the last `take_changes` have touched: run, experts,
    hardware, parameters, sample, log, probes, step, eval, able.
    """

    run_id: str = ""
    seq: int = 0
    """Number of the last event that was taken in."""
    status: Status | None = None
    preset: str = ""
    device: str = ""
    precision: str = ""
    attempt: int = 0
    started: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    plan: tuple[PhasePlan, ...] = ()
    max_steps: int | None = None
    phase: int | None = None
    phases: int = 0
    phase_name: str = ""
    expert: str | None = None
    """Whose phase it is."""
    current_params: int = 0
    target_params: int = 0
    last: StepDone | None = None
    step: int | None = None
    skipped: int = 0
    """Steps that a guard has skipped, of those seen live."""
    bits_per_byte: float | None = None
    best_bits: float | None = None
    eval_step: int | None = None
    experts: dict[str, ExpertRow] = field(default_factory=dict)
    data: dict[str, DataReady] = field(default_factory=dict)
    able: dict[str, CapabilitiesScored] = field(default_factory=dict)
    """Held-out prompts that the student, and each expert, answered rightly when last asked."""
    able_best: dict[str, float] = field(default_factory=dict)
    """The student's highest share of right answers so far, by capability."""
    sample: SampleDrawn | None = None
    checkpoint: CheckpointSaved | None = None
    checkpoints: int = 0
    """Checkpoints that were saved, of those told."""
    work: dict[str, Progress] = field(default_factory=dict)
    """Work that is not steps and goes on, by task."""
    readings: deque[HardwareRead] = field(default_factory=lambda: deque(maxlen=READINGS))
    probes: dict[tuple[str, int], ProbeRead] = field(default_factory=dict)
    """The newest reading of each (expert, sentence)."""
    former_probes: dict[tuple[str, int], ProbeRead] = field(default_factory=dict)
    """The reading before it."""
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    logged: int = 0
    """Lines that the log has had in all."""
    ended: RunEnded | None = None
    changed: set[str] = field(default_factory=set)

    @property
    def hardware(self) -> HardwareRead | None:
        return self.readings[-1] if self.readings else None

    @property
    def alive(self) -> bool:
        """Whether, as far as the events tell, it still runs."""
        return self.status in ("preparing", "training", "paused", "stalled", "stopped")

    @property
    def phase_progress(self) -> float | None:
        """How far the phase is, 0 to 1; None where its end is not known."""
        if self.status == "completed":
            return 1.0
        if self.last is None:
            return None
        return self.last.phase_progress if self.last.phase == self.phase else 0.0

    def take_changes(self) -> set[str]:
        """What has changed since the last call."""
        changed, self.changed = self.changed, set()
        return changed

    def take(self, events: Iterable[AnyEvent]) -> None:
        """Take the events in; those that were taken in before are passed over."""
        for event in events:
            if event.seq and event.seq <= self.seq:
                continue
            self.seq = max(self.seq, event.seq)
            self._take(event)
            entry = log_entry(event)
            if entry is not None:
                self.log.append(entry)
                self.logged += 1
                self.changed.add("log")

    def gone(self) -> None:
        """Its runner is gone; without a last word it was killed."""
        if self.alive or self.status is None:
            self.status = "failed"
            self.changed.add("run")

    def taken_up(self, since: float) -> None:
        """A runner has it since then (Unix time); where it had ended before, it begins again."""
        if self.ended is not None and self.ended.time < since:
            self.status = self.ended = None
            self.changed.add("run")

    def _take(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case PhaseStarted():
                self._enter(event)
            case StepDone():
                self._step(event)
            case EvalDone():
                self._evaluated(event)
            case CapabilitiesScored():
                self._scored(event)
            case DataReady():
                self.data[event.expert] = event
                self.changed |= {"experts"}
            case CapabilitiesScored():
                self._scored(event)
            case SampleDrawn():
                self.sample = event
                self.changed |= {"sample"}
            case ProbeRead():
                key = event.expert, event.probe
                if (former := self.probes.get(key)) is not None and former.step < event.step:
                    self.former_probes[key] = former
                self.probes[key] = event
                self.changed |= {"probes"}
            case HardwareRead():
                self.readings.append(event)
                self.changed |= {"hardware"}
            case CheckpointSaved():
                self.checkpoint = event
                self.checkpoints += 1
                self.changed |= {"run"}
            case Progress():
                self._work(event)
            case RunPaused():
                self._become("paused")
            case RunResumed():
                self._become("training")
            case GuardTripped(guard="stall"):
                known = {"stopped": "stopped", "stalled": "stalled"}
                self._become(known.get(event.action, "training"))  # type: ignore[arg-type]
            case RunEnded():
                self._end(event)

    def _become(self, status: Status) -> None:
        self.status = status
        self.changed |= {"run"}

    def _begin(self, event: RunStarted) -> None:
        if event.resumed_from is None or event.run_id != self.run_id:
            self.last = None
        self.run_id, self.attempt = event.run_id, event.attempt
        self.preset, self.device, self.precision = event.preset, event.device, event.precision
        self.config, self.plan, self.max_steps = event.config, event.phases, event.max_steps
        self.started = self.started or event.time
        self.phases = max((phase.index for phase in event.phases), default=0)
        self.target_params = event.target_params
        self.current_params = event.current_params
        self.step = event.resumed_from or 0
        self.status, self.ended = "preparing", None
        self.work.clear()
        phase_of = {phase.expert: phase.index for phase in event.phases if phase.expert}
        former = self.experts
        self.experts = {}
        for share in event.experts:
            row = former.get(share.name) or ExpertRow(share.name, share.title, share.share)
            row.title, row.share, row.phase = share.title, share.share, phase_of.get(share.name)
            self.experts[share.name] = row
        self._set_progress(None)
        self.changed |= {"run", "experts", "parameters"}

    def _enter(self, event: PhaseStarted) -> None:
        self.phase, self.phases = event.phase, event.phases
        self.phase_name, self.expert = event.name, event.expert
        if self.last is not None and self.last.phase != event.phase:
            self._set_progress(0.0)
        else:
            self._set_progress(None)
        self.changed |= {"run", "experts"}

    def _step(self, event: StepDone) -> None:
        self.last, self.step = event, event.step
        self.phase, self.expert = event.phase, event.expert
        self.skipped += event.skipped
        if self.status in ("preparing", "stalled", None):
            self.status = "training"
        self._set_progress(event.phase_progress)
        if self.work:
            self.work.clear()
        self.changed |= {"run", "step", "experts"}

    def _set_progress(self, of_phase: float | None) -> None:
        """Progress of every expert's phase: those before are whole, those after not begun."""
        now = self.phase or 0
        for row in self.experts.values():
            if row.phase is None:
                row.progress = None
            elif row.phase < now or self.status == "completed":
                row.progress = 1.0
            elif row.phase > now:
                row.progress = 0.0
            else:
                row.progress = of_phase

    def _evaluated(self, event: EvalDone) -> None:
        self.bits_per_byte, self.eval_step = event.bits_per_byte, event.step
        if self.best_bits is None or event.bits_per_byte < self.best_bits:
            self.best_bits = event.bits_per_byte
        for score in event.scores:
            row = self.experts.setdefault(
                score.expert, ExpertRow(score.expert, score.expert, share=0.0)
            )
            row.kl, row.agreement = score.kl, score.agreement
            row.bits_per_byte = score.bits_per_byte
            if score.kl is not None:
                row.best_kl = score.kl if row.best_kl is None else min(row.best_kl, score.kl)
        self.changed |= {"run", "experts", "eval"}

    def _scored(self, event: CapabilitiesScored) -> None:
        self.able[event.who] = event
        if event.who == STUDENT:
            for score in event.scores:
                share = score.right / max(1, score.asked)
                best = self.able_best.get(score.capability, 0.0)
                self.able_best[score.capability] = max(best, share)
        self.changed |= {"able"}

    def _work(self, event: Progress) -> None:
        if event.task == "create":
            self.current_params = int(event.done)
            self.changed |= {"parameters"}
        if event.finished:
            self.work.pop(event.task, None)
        else:
            self.work[event.task] = event
        self.changed |= {"run"}

    def _end(self, event: RunEnded) -> None:
        self.ended = event
        self.status = {"completed": "completed", "stopped": "ended", "failed": "failed"}[
            event.status
        ]  # type: ignore[assignment]
        self.work.clear()
        if self.status == "completed":
            self._set_progress(1.0)
        self.changed |= {"run", "experts"}


def log_entry(event: AnyEvent) -> LogEntry | None:
    """The event as a line of the log; None for what is shown elsewhere."""

    def entry(level: Literal["info", "good", "warning", "error"], text: str) -> LogEntry:
        return LogEntry(event.time, level, " ".join(text.split()))

    match event:
        case RunStarted():
            how = "started" if event.resumed_from is None else f"resumed at {event.resumed_from:,}"
            words = [f"run {how}", event.preset and f"preset {event.preset}"]
            words += [f"{event.device} {event.precision}".strip()]
            again = f"attempt {event.attempt}" if event.attempt > 1 else ""
            return entry("info", " · ".join(word for word in [*words, again] if word))
        case PhaseStarted():
            return entry("info", f"phase {event.phase}/{event.phases} {event.name}")
        case DataReady():
            return entry(
                "info",
                f"{event.expert}: {event.blocks:,} blocks, {event.positions:,} positions, "
                f"{event.aligned:.0%} aligned, weight {event.mean_weight:.2f}",
            )
        case EvalDone():
            best = ", best so far" if event.best else ""
            return entry(
                "info",
                f"step {event.step:,}: {event.bits_per_byte:.3f} bits/byte held out{best}",
            )
        case AnswersJudged():
            kept = f"{event.kept:,} of {event.written:,} answers are learnt from"
            return entry("info", f"{event.expert}: {kept}")
        case CheckpointSaved():
            asked = {"interval": "", "best": ", the best"}.get(event.reason, f", {event.reason}")
            return entry(
                "good",
                f"checkpoint {event.step:,} saved, {size(event.bytes)} in "
                f"{duration(event.seconds) if event.seconds >= 1 else 'under 1s'}{asked}",
            )
        case CheckpointRejected():
            return entry("warning", f"checkpoint {event.path} is not used: {event.reason}")
        case GuardTripped():
            return entry("warning", f"{event.guard.replace('_', ' ')}: {event.action}")
        case LogLine():
            return entry(event.level, event.text)
        case RunPaused():
            return entry("info", f"paused at step {event.step:,} ({event.reason})")
        case RunResumed():
            return entry("info", f"going on from step {event.step:,}")
        case RunEnded():
            level = {"completed": "good", "stopped": "info", "failed": "error"}[event.status]
            text = f"{event.status} at step {event.step:,}"
            if event.reason:
                text = event.reason if event.reason.startswith(text) else f"{text}: {event.reason}"
            return entry(level, text)  # type: ignore[arg-type]
    return None
