"""The state of a run, folded from its events; used by `status`, the terminal and the app.

Pure: no widgets, no clock, no files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.events import (
    STUDENT,
    AnyEvent,
    CapabilitiesScored,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    GuardTripped,
    HardwareRead,
    HealthWarning,
    LayerStats,
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
    StopRequested,
    TextsRead,
    describe,
)
from engine.run.job import MAX_RESTARTS

Status = Literal[
    "preparing",
    "training",
    "paused",
    "stopping",
    "restarting",
    "stalled",
    "stopped",
    "completed",
    "ended",
    "failed",
]
"""`stopped`: the worker process is suspended; `ended`: the run was stopped and can be resumed."""

_WORDS: dict[Status, str] = {
    "stopped": "suspended",
    "completed": "finished",
    "ended": "stopped",
}
"""The words for users of states that are called otherwise here."""

READINGS = 120
"""Hardware readings that are kept for sparklines."""
LOG_LINES = 500

LOGGED = (
    *("RunStarted", "PhaseStarted", "DataReady", "AnswersJudged", "EvalDone", "CheckpointSaved"),
    "TextsRead",
    *("CheckpointRejected", "GuardTripped", "LogLine", "RunPaused", "RunResumed", "RunEnded"),
    "HealthWarning",
    "StopRequested",
)
"""Names of the events that become lines of the view's log; the others are shown as figures."""

_ENDS: dict[str, Status] = {"completed": "completed", "stopped": "ended", "failed": "failed"}
_STALLS: dict[str, Status] = {"stopped": "stopped", "stalled": "stalled"}


@dataclass
class ExpertRow:
    """One expert of the run: its share of the mix, its phase, and how close the student is.

    Attributes:
        share: of the training mix, 0 to 1.
        phase: index of its own phase; None where it has none.
        progress: of its own phase, 0 to 1; None where the end is not known.
        kl, agreement, bits_per_byte: of the last evaluation.
        best_kl: lowest KL of all evaluations so far.
    """

    name: str
    title: str
    share: float
    phase: int | None = None
    progress: float | None = None
    kl: float | None = None
    agreement: float | None = None
    bits_per_byte: float | None = None
    best_kl: float | None = None

    @property
    def forgotten(self) -> float | None:
        """Relative rise of KL above its lowest value; None where not measured."""
        if self.kl is None or not self.best_kl:
            return None
        return max(0.0, self.kl / self.best_kl - 1.0)


Level = Literal["info", "good", "warning", "error"]


@dataclass(frozen=True)
class LogEntry:
    """A line of the log."""

    time: float
    level: Level
    text: str


@dataclass
class RunView:
    """The state of a run after its events so far; None where not known.

    Attributes:
        seq: number of the last event.
        changed: what the events since the last `take_changes` changed: run, experts, hardware,
            parameters, sample, log, probes, step, eval, capabilities.
    """

    run_id: str = ""
    seq: int = 0
    status: Status | None = None
    paused: bool = False
    preset: str = ""
    device: str = ""
    precision: str = ""
    attempt: int = 0
    started: float | None = None
    """Unix time."""
    config: dict[str, Any] = field(default_factory=dict)
    plan: tuple[PhasePlan, ...] = ()
    max_steps: int | None = None
    phase: int | None = None
    phases: int = 0
    """Number of the last phase (phase n/N)."""
    phase_name: str = ""
    expert: str | None = None
    """The expert that the current phase trains on; None where it trains on all."""
    current_params: int = 0
    target_params: int = 0
    last: StepDone | None = None
    """The last step, as seen since the run began or was resumed."""
    step: int | None = None
    tokens_seen: int = 0
    loss: float | None = None
    training_seconds: float = 0.0
    """Unpaused worker time of the run."""
    skipped: int = 0
    """Steps that a guard skipped, of those seen live."""
    bits_per_byte: float | None = None
    """Of the last evaluation on held-out text."""
    best_bits: float | None = None
    eval_step: int | None = None
    experts: dict[str, ExpertRow] = field(default_factory=dict)
    data: dict[str, DataReady] = field(default_factory=dict)
    texts: dict[tuple[str, str], TextsRead] = field(default_factory=dict)
    """What became of the texts, by expert and stream; ("", "") is the whole run."""
    capabilities: dict[str, CapabilitiesScored] = field(default_factory=dict)
    """The last scores on held-out prompts, of the student and of each expert."""
    best_capabilities: dict[str, float] = field(default_factory=dict)
    """The student's highest share of correct answers so far, by capability."""
    layers: LayerStats | None = None
    sample: SampleDrawn | None = None
    checkpoint: CheckpointSaved | None = None
    """The newest one, copies of the best weights included."""
    resumable: CheckpointSaved | None = None
    """The newest full checkpoint: the one that a resume starts from."""
    repeated: int = 0
    """Steps that are trained again after the last resume."""
    restarts: int = 0
    """How often the runner has restarted the worker."""
    checkpoints: int = 0
    """Checkpoints saved, of those seen."""
    work: dict[str, Progress] = field(default_factory=dict)
    """Unfinished work other than training steps, by task."""
    readings: deque[HardwareRead] = field(default_factory=lambda: deque(maxlen=READINGS))
    probes: dict[tuple[str, int], ProbeRead] = field(default_factory=dict)
    """The newest reading of each (expert, sentence)."""
    former_probes: dict[tuple[str, int], ProbeRead] = field(default_factory=dict)
    """The reading before it."""
    log: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    warnings: dict[tuple[str, str], HealthWarning] = field(default_factory=dict)
    """The warnings that hold, by kind and subject."""
    logged: int = 0
    """Lines that the log has had in total."""
    ended: RunEnded | None = None
    trouble: str = ""
    """Why the run is paused, when nobody asked for it: a full disk."""
    changed: set[str] = field(default_factory=set)

    @property
    def hardware(self) -> HardwareRead | None:
        """The newest reading."""
        return self.readings[-1] if self.readings else None

    @property
    def alive(self) -> bool:
        """Whether the run is in progress, as far as its events show."""
        return self.status not in (None, "completed", "ended", "failed")

    @property
    def phase_progress(self) -> float | None:
        """Progress of the current phase, 0 to 1; None where its end is not known."""
        if self.status == "completed":
            return 1.0
        if self.last is None:
            return None
        return self.last.phase_progress if self.last.phase == self.phase else 0.0

    def take_changes(self) -> set[str]:
        """Kinds of changes since the last call."""
        changed, self.changed = self.changed, set()
        return changed

    def take(self, events: Iterable[AnyEvent]) -> None:
        """Fold events in, in order; those with a number that was seen before are skipped."""
        for event in events:
            if event.seq and event.seq <= self.seq:
                continue
            self.seq = max(self.seq, event.seq)
            self._apply(event)
            entry = log_entry(event)
            if entry is not None:
                self.log.append(entry)
                self.logged += 1
                self.changed.add("log")

    def mark_killed(self) -> None:
        """Record that the runner has exited; a run without RunEnded was killed."""
        if self.alive or self.status is None:
            self.status = "failed"
            self.changed.add("run")

    def mark_restarted(self, since: float) -> None:
        """A runner has held the run since then (Unix time): an end before that is outdated."""
        if self.ended is not None and self.ended.time < since:
            self.status = self.ended = None
            self.changed.add("run")

    def _apply(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case PhaseStarted():
                self._enter_phase(event)
            case StepDone():
                self._step_done(event)
            case EvalDone():
                self._evaluated(event)
            case CapabilitiesScored():
                self.capabilities[event.who] = event
                if event.who == STUDENT:
                    _keep_best(self.best_capabilities, event)
                self.changed |= {"capabilities"}
            case DataReady():
                self.data[event.expert] = event
                self.changed |= {"experts"}
            case TextsRead():
                self.texts[event.expert, event.source] = event
                self.changed |= {"experts"}
            case SampleDrawn():
                self.sample = event
                self.changed |= {"sample"}
            case ProbeRead():
                _keep_probe(self, event)
            case LayerStats():
                self.layers = event
                self.changed |= {"parameters"}
            case HardwareRead():
                self.readings.append(event)
                self.changed |= {"hardware"}
            case CheckpointSaved():
                self.checkpoint = event
                if event.reason != "best":
                    self.resumable = event
                self.checkpoints += 1
                self.changed |= {"run"}
            case Progress():
                self._work(event)
            case HealthWarning():
                _keep_warning(self.warnings, event)
                self.changed |= {"run"}
            case RunPaused() | RunResumed():
                self.paused = isinstance(event, RunPaused)
                reason = event.reason if isinstance(event, RunPaused) else "asked"
                self.trouble = "" if reason == "asked" else reason
                self._set_status("paused" if self.paused else "training")
            case StopRequested():
                if not event.finish:
                    self._set_status("stopping")
            case GuardTripped(guard="worker"):
                self.restarts = int(event.value or self.restarts + 1)
                self.work.clear()
                self._set_status("restarting")
            case GuardTripped(guard="stall"):
                self._set_status(_STALLS.get(event.action, "paused" if self.paused else "training"))
            case RunEnded():
                self._end(event)

    def _set_status(self, status: Status) -> None:
        self.status = status
        self.changed |= {"run"}

    def _begin(self, event: RunStarted) -> None:
        reached = self.step or 0
        if event.resumed_from is None or event.run_id != self.run_id:
            _forget_steps(self)
        self.repeated = max(0, reached - (event.resumed_from or reached))
        self.run_id, self.attempt = event.run_id, event.attempt
        self.preset, self.device, self.precision = event.preset, event.device, event.precision
        self.config, self.plan, self.max_steps = event.config, event.phases, event.max_steps
        self.started = self.started or event.time
        self.phases = max((phase.index for phase in event.phases), default=0)
        self.target_params = event.target_params
        self.current_params = event.current_params
        self.step = event.resumed_from or 0
        self.status, self.ended, self.paused = "preparing", None, False
        self.trouble = ""
        self.work.clear()
        self.texts.clear()
        self.experts = _expert_rows(event, self.experts)
        _set_phase_progress(self, None)
        self.changed |= {"run", "experts", "parameters"}

    def _enter_phase(self, event: PhaseStarted) -> None:
        self.phase, self.phases = event.phase, event.phases
        self.phase_name, self.expert = event.name, event.expert
        entered = self.last is not None and self.last.phase != event.phase
        _set_phase_progress(self, 0.0 if entered else None)
        self.changed |= {"run", "experts"}

    def _step_done(self, event: StepDone) -> None:
        self.last, self.step = event, event.step
        self.phase, self.expert = event.phase, event.expert
        self.tokens_seen, self.loss = event.tokens_seen, event.loss
        self.training_seconds = event.training_seconds
        self.skipped += event.skipped
        if self.status in ("preparing", "stalled", "restarting", None):
            self.status = "training"
        _set_phase_progress(self, event.phase_progress)
        self.work.clear()
        self.changed |= {"run", "step", "experts"}

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
        self.ended, self.paused, self.trouble = event, False, ""
        for kind in ("disk", "throughput"):  # they are about work in progress
            self.warnings.pop((kind, ""), None)
        self.status = _ENDS[event.status]
        self.work.clear()
        if self.status == "completed":
            _set_phase_progress(self, 1.0)
        self.changed |= {"run", "experts"}


def state_words(run: RunView) -> str:
    """The state for users: `preparing`, `restarting 1/3`, `stopped (resumable from step 120)`."""
    if run.status is None:
        return "preparing"
    word = _WORDS.get(run.status, run.status)
    if run.status == "restarting":
        return f"{word} {run.restarts}/{MAX_RESTARTS}"
    if run.status == "ended" and run.resumable is not None:
        return f"{word} (resumable from step {run.resumable.step:,})"
    return word


def resume_text(run: RunView) -> str:
    """Where a resume starts, and what it repeats."""
    if run.resumable is None:
        return "resume (there is no checkpoint yet: it starts again at step 0)"
    return f"resume {resume_point(run.resumable.step, run.step or 0)}"


def resume_point(saved: int, reached: int) -> str:
    """The step that a resume starts from, and the steps up to `reached` that it repeats."""
    repeated = max(0, reached - saved)
    text = f"from step {saved:,}"
    return f"{text}; {_steps(repeated)} repeated" if repeated else text


def _expert_rows(event: RunStarted, previous: dict[str, ExpertRow]) -> dict[str, ExpertRow]:
    """The run's experts by name; scores of the previous attempt are kept."""
    phase_of = {phase.expert: phase.index for phase in event.phases if phase.expert}
    rows: dict[str, ExpertRow] = {}
    for share in event.experts:
        row = previous.get(share.name) or ExpertRow(share.name, share.title, share.share)
        row.title, row.share, row.phase = share.title, share.share, phase_of.get(share.name)
        rows[share.name] = row
    return rows


def _keep_best(best: dict[str, float], event: CapabilitiesScored) -> None:
    for score in event.scores:
        share = score.right / max(1, score.asked)
        best[score.capability] = max(best.get(score.capability, 0.0), share)


def _keep_warning(warnings: dict[tuple[str, str], HealthWarning], event: HealthWarning) -> None:
    key = event.kind, event.subject
    if event.active:
        warnings[key] = event
    else:
        warnings.pop(key, None)


def log_entry(event: AnyEvent) -> LogEntry | None:
    """The event as a line of the log; None for events that are shown as figures."""
    text = describe(event) if type(event).__name__ in LOGGED else None
    return None if text is None else LogEntry(event.time, _level(event), " ".join(text.split()))


def _level(event: AnyEvent) -> Level:
    match event:
        case CheckpointSaved() | RunEnded(status="completed"):
            return "good"
        case CheckpointRejected() | GuardTripped():
            return "warning"
        case HealthWarning():
            return "warning" if event.active else "info"
        case TextsRead() if event.reasons:
            return "warning"
        case LogLine():
            return event.level
        case RunEnded(status="failed"):
            return "error"
    return "info"


def _steps(count: int) -> str:
    return f"{count:,} step is" if count == 1 else f"{count:,} steps are"


def _keep_probe(view: RunView, event: ProbeRead) -> None:
    key = event.expert, event.probe
    if (previous := view.probes.get(key)) is not None and previous.step < event.step:
        view.former_probes[key] = previous
    view.probes[key] = event
    view.changed |= {"probes"}


def _forget_steps(view: RunView) -> None:
    """Drop what an earlier attempt trained: the run begins again at step 0."""
    view.last = view.loss = view.started = view.checkpoint = view.resumable = None
    view.layers = None
    view.phase = view.expert = view.bits_per_byte = view.best_bits = view.eval_step = None
    view.phase_name, view.tokens_seen, view.training_seconds = "", 0, 0.0
    view.warnings.clear()


def _set_phase_progress(view: RunView, current: float | None) -> None:
    """Set the progress of every expert's phase: done before the current one, 0 after it."""
    phase = view.phase or 0
    for row in view.experts.values():
        if row.phase is None:
            row.progress = None
        elif row.phase < phase or view.status == "completed":
            row.progress = 1.0
        else:
            row.progress = current if row.phase == phase else 0.0
