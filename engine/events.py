"""The events and commands that flow between worker, runner and viewers, and their codec.

A worker emits events on its queue; the runner numbers them (`seq`), commits them to the history
and broadcasts them. Events are the only record of what happened in a job.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.foreign_text import shown_values
from engine.units import duration, size

Job = Literal["download", "train", "export", "validate", "audit", "data", "ask"]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events: number within the run, time and optimizer step."""

    seq: int = 0
    """Position in the run's stream, from 1; 0 until the runner has numbered it."""
    time: float = 0.0
    """Unix time in seconds at which the worker emitted it."""
    step: int = 0
    """Optimizer steps completed when it was emitted."""


class PhasePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of a run as planned."""

    index: int
    name: str
    expert: str | None = None
    share: float = 0.0
    """Share of the run's budget, 0 to 1."""


class ExpertShare(msgspec.Struct, frozen=True, kw_only=True):
    """One expert of a run: its name, title and share of the mix."""

    name: str
    title: str
    share: float
    capabilities: tuple[str, ...] = ()


class ExpertScore(msgspec.Struct, frozen=True, kw_only=True):
    """The student's scores on one expert's held-out text."""

    expert: str
    bits_per_byte: float
    kl: float | None
    """Mean KL(expert || student) in nats at the training temperature; None without soft targets."""
    agreement: float | None
    """Share of positions whose most probable token is the expert's, 0 to 1."""
    positions: int


class RunStarted(Event, frozen=True, kw_only=True, tag="RunStarted"):
    """A worker has begun (or resumed) the job."""

    run_id: str
    job: Job
    attempt: int
    pid: int
    config: dict = {}
    """The complete RunConfig as plain data."""
    config_digest: str = ""
    preset: str = ""
    device: str = ""
    precision: str = ""
    current_params: int = 0
    target_params: int = 0
    max_steps: int | None = None
    tokens_per_step: int = 0
    phases: tuple[PhasePlan, ...] = ()
    experts: tuple[ExpertShare, ...] = ()
    resumed_from: int | None = None
    """Step of the checkpoint that it resumes from; None for a run from step 0."""
    streams_text: bool = False
    """Whether text is read during training: how much there is of it is not known."""


class PhaseStarted(Event, frozen=True, kw_only=True, tag="PhaseStarted"):
    """A phase has begun."""

    phase: int
    phases: int
    """Number of the last phase (phase n/N)."""
    name: str
    expert: str | None = None
    first_step: int = 0
    last_step: int | None = None
    """Planned last step of the phase; None if not known."""


class DataReady(Event, frozen=True, kw_only=True, tag="DataReady"):
    """An expert's text is tokenised, aligned and (when cached) scored; alignment statistics."""

    expert: str
    blocks: int
    held_out_blocks: int
    skipped_blocks: int
    """Blocks left out: too long, or their tokens do not decode to the same bytes."""
    text_bytes: int
    teacher_tokens: int
    student_tokens: int
    positions: int
    """Scored student positions."""
    dropped_positions: int
    """Positions without a soft target (cross-entropy only)."""
    aligned: float
    inside: float
    crossing: float
    """Shares of the positions under rule 1, 2 and 3 of the projection."""
    mean_weight: float
    mean_residual: float


class TextReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why texts (or files of a folder) are not learnt, or only in part."""

    outcome: Literal["left_out", "cut", "file"]
    """file: a file of a folder that is not read; it is no text."""
    reason: str
    """In a few words: `repeated`, `no assistant turn`."""
    count: int
    where: str = ""
    """FILE, line N of the first."""
    detail: str = ""
    """What exactly is wrong with the first."""


class TextsRead(Event, frozen=True, kw_only=True, tag="TextsRead"):
    """What became of the texts: of the whole run when they are read, then of each expert's, and of
    streamed text as it is read.

    `texts` = `learnt` + `left_out` + `unused`; a long document is one text.
    """

    expert: str = ""
    """"" for all texts of the run, as they were read."""
    source: str = ""
    """Name of the streamed text; "" for text in memory."""
    texts: int = 0
    learnt: int = 0
    """Including those that are held out, and those that are cut."""
    held_out: int = 0
    cut: int = 0
    """Learnt in part."""
    left_out: int = 0
    unused: int = 0
    """Beyond data.max_teacher_tokens or data.max_held_out_blocks."""
    reasons: tuple[TextReason, ...] = ()


class StepDone(Event, frozen=True, kw_only=True, tag="StepDone"):
    """An optimizer step was taken (or skipped by a guard)."""

    phase: int
    expert: str | None = None
    loss: float | None
    """None where it was not finite; likewise kl, ce and grad_norm."""
    kl: float | None
    """Weighted KL(expert || student) at T, in nats, mean over scored positions."""
    ce: float | None
    """Cross-entropy with the text, in nats, mean over scored positions."""
    lr: float
    grad_norm: float | None
    tokens: int
    """Student tokens of this step, prompts included."""
    tokens_seen: int
    tokens_per_sec: float
    step_seconds: float
    mean_weight: float = 0.0
    phase_progress: float | None = None
    run_progress: float | None = None
    phase_eta: float | None = None
    """Seconds; None where the end is not known."""
    run_eta: float | None = None
    training_seconds: float = 0.0
    """Unpaused worker time of the run so far, all attempts together."""
    skipped: bool = False


class EvalDone(Event, frozen=True, kw_only=True, tag="EvalDone"):
    """The student was evaluated on held-out text."""

    bits_per_byte: float
    scores: tuple[ExpertScore, ...] = ()
    best: bool = False
    seconds: float = 0.0


class ReasonCount(msgspec.Struct, frozen=True, kw_only=True):
    """Number of a capability's answers that were kept, or dropped for one reason."""

    capability: str
    reason: str
    """Why they were dropped, a key of engine.prompts.checkers.REASONS; "" for those that were
    kept."""
    count: int


class AnswersJudged(Event, frozen=True, kw_only=True, tag="AnswersJudged"):
    """An expert's answers were checked: how many were kept, and why the others were dropped."""

    expert: str
    written: int
    kept: int
    counts: tuple[ReasonCount, ...] = ()


class CapabilityScore(msgspec.Struct, frozen=True, kw_only=True):
    """How many held-out prompts of a capability were answered correctly, by the checkers."""

    capability: str
    right: int
    asked: int


STUDENT = "student"
"""Value of `CapabilitiesScored.who` for the student."""


class CapabilitiesScored(Event, frozen=True, kw_only=True, tag="CapabilitiesScored"):
    """The student, or an expert (once), answered held-out prompts of each capability."""

    who: str
    """`student`, or the expert's name."""
    scores: tuple[CapabilityScore, ...] = ()
    seconds: float = 0.0


class SampleDrawn(Event, frozen=True, kw_only=True, tag="SampleDrawn"):
    """The student's answer to a sample prompt."""

    prompt: str
    text: str


class ProbeToken(msgspec.Struct, frozen=True, array_like=True):
    """A candidate for the next token, with its probabilities by student and expert (T = 1)."""

    text: str
    student: float
    expert: float


class ProbePosition(msgspec.Struct, frozen=True, kw_only=True):
    """One position of a probe sentence, before its token is read."""

    text: str
    """The actual next token."""
    rule: Literal["aligned", "inside", "crossing", "end"]
    """How the student's token aligns with the expert's: aligned: same boundaries; inside: it begins
    inside a token of the expert; crossing: it ends after the expert's token; end: end of turn."""
    kept: float
    """Mass of the expert's distribution that the projection keeps; 0 without a soft target."""
    kl: float | None
    """KL(expert || student) in nats at T = 1; None without a soft target."""
    tokens: tuple[ProbeToken, ...]
    """The most probable tokens of each, and the actual next one; in the expert's order."""
    follows: int = 0
    """Index in `tokens` of the actual next token."""


class ProbeRead(Event, frozen=True, kw_only=True, tag="ProbeRead"):
    """Next-token probabilities of the student and a projected expert along a fixed sentence."""

    expert: str
    probe: int
    """From 0, below `probes`."""
    probes: int
    prompt: str
    """The prompt that the sentence answers; "" for a document."""
    positions: tuple[ProbePosition, ...]


class LayerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """The student's weights of one kind: one value a block, or a single value."""

    kind: Literal["attention", "mlp", "embeddings", "head"]
    update: tuple[float | None, ...]
    """Norm of the change over the interval, relative to the norm of the weights; None where it is
    not finite."""
    moved: tuple[float | None, ...]
    """Norm of the change since the random initialisation, relative to the norm of the weights."""


class LayerStats(Event, frozen=True, kw_only=True, tag="LayerStats"):
    """How much the student's layers have changed, at each log interval."""

    interval: int
    """Steps that `update` covers."""
    groups: tuple[LayerGroup, ...] = ()


class GpuReading(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU: bytes, percent, degrees Celsius, watts."""

    index: int
    name: str
    used_bytes: int
    total_bytes: int
    percent: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None


class HardwareRead(Event, frozen=True, kw_only=True, tag="HardwareRead"):
    """A reading of the machine's load, memory, disk and GPUs."""

    cpu_percent: float
    ram_used: int
    ram_total: int
    worker_rss: int = 0
    disk_free: int = 0
    disk_read_per_sec: float = 0.0
    disk_write_per_sec: float = 0.0
    gpus: tuple[GpuReading, ...] = ()


class CheckpointSaved(Event, frozen=True, kw_only=True, tag="CheckpointSaved"):
    """A checkpoint was saved and verified."""

    path: str
    bytes: int
    seconds: float
    reason: Literal["interval", "asked", "stop", "best", "decay", "final", "phase"] = "interval"
    best: bool = False


class CheckpointRejected(Event, frozen=True, kw_only=True, tag="CheckpointRejected"):
    """A checkpoint did not verify and was moved aside."""

    path: str
    reason: str
    moved_to: str = ""


class GuardTripped(Event, frozen=True, kw_only=True, tag="GuardTripped"):
    """A guard detected a problem and acted."""

    guard: Literal["non_finite", "spike", "out_of_memory", "stall", "worker", "disk", "rollback"]
    action: str
    """What was done, in a few words for the user."""
    value: float | None = None


class Progress(Event, frozen=True, kw_only=True, tag="Progress"):
    """Work that is not training steps: a download, scoring, generation, an export stage."""

    task: str
    """Stable key, such as `score:smollm2`; the same task's events replace one another on screen."""
    label: str
    done: float
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta: float | None = None
    finished: bool = False


class LogLine(Event, frozen=True, kw_only=True, tag="LogLine"):
    """A line for the log."""

    level: Literal["info", "warning", "error"] = "info"
    text: str


class CheckDone(Event, frozen=True, kw_only=True, tag="CheckDone"):
    """A check of a validation is done: one row of its report."""

    group: Literal["structural", "quality"]
    """Structural checks decide the exit code; quality is reported and never fails."""
    name: str
    """Stable key, such as `tensors_finite` or `bits_per_byte:smollm2`."""
    title: str
    value: str
    """What was found, as text; empty for a check that was skipped."""
    bound: str
    """The bound that it is compared with, as text."""
    verdict: Literal["pass", "warn", "fail", "skip"]
    meaning: str
    """One sentence: what the result means; for a skipped check, why it was skipped."""
    detail: str = ""
    """Details in several lines: findings, or a complete generation."""
    number: float | None = None
    """The value as a number where it is one."""
    former: str = ""
    """The same check's value in the previous report; empty where there is none."""


class ReportDone(Event, frozen=True, kw_only=True, tag="ReportDone"):
    """A validation is done and its report written; RunEnded follows."""

    structure: Literal["sound", "broken"]
    quality: Literal["good", "fair", "low", "unknown"]
    verdict: str
    """Structure and quality in one sentence."""
    path: str
    """The report (JSON)."""
    seconds: float = 0.0


class Exported(Event, frozen=True, kw_only=True, tag="Exported"):
    """A GGUF file was written and verified; RunEnded follows."""

    path: str
    weights: str
    """The type of its weights: f16, q8_0, ..."""
    bytes: int
    source: str
    """The model that was exported: the finished one, or a checkpoint."""
    parity: str
    """Result of the comparison with the model, in one line."""
    beside: tuple[str, ...] = ()
    """Names of the files written to the same folder."""


class RunPaused(Event, frozen=True, kw_only=True, tag="RunPaused"):
    """The job is paused after this step."""

    reason: str = "asked"


class RunResumed(Event, frozen=True, kw_only=True, tag="RunResumed"):
    """The job continues after this step."""


class StopRequested(Event, frozen=True, kw_only=True, tag="StopRequested"):
    """The runner has passed a stop on to the job."""

    finish: bool = False
    """Whether the run decays the learning rate and saves the model first."""


class RunEnded(Event, frozen=True, kw_only=True, tag="RunEnded"):
    """The job is over (or its attempt is, where the run can be resumed)."""

    status: Literal["completed", "stopped", "failed"]
    exit_code: int = 0
    reason: str = ""
    """One line: why it ended, and for a failure the remedy."""
    model_path: str = ""
    tokens_seen: int = 0
    seconds: float = 0.0


class KindAudit(msgspec.Struct, frozen=True, kw_only=True):
    """Alignment of an expert's and the student's tokens on one kind of text (prose, code, ...)."""

    kind: str
    positions: int
    aligned: float


class TokenizersAudited(Event, frozen=True, kw_only=True, tag="TokenizersAudited"):
    """An expert's tokenizer was aligned with the student's on the sample text."""

    expert: str
    problem: str = ""
    """Why the audit failed; the numbers are zero then."""
    student: str = ""
    """Where the student's tokenizer is from, for the user."""
    reachable: float = 0.0
    """Share of the student's tokens that are, byte for byte, tokens of the expert."""
    blocks: int = 0
    skipped_blocks: int = 0
    positions: int = 0
    aligned: float = 0.0
    inside: float = 0.0
    crossing: float = 0.0
    """Shares of the positions under rule 1, 2 and 3 of the projection."""
    mean_weight: float | None = None
    mean_residual: float | None = None
    """None where the expert was not run: both depend on its predictions."""
    kinds: tuple[KindAudit, ...] = ()


class SpeedMeasured(Event, frozen=True, kw_only=True, tag="SpeedMeasured"):
    """Speed of matrix products on the device that a run would use."""

    device: str
    precision: str
    flops: float
    """Floating-point operations per second, the best of several products."""


WarningKind = Literal["overfitting", "spikes", "plateau", "epochs", "disk", "throughput"]


class HealthWarning(Event, frozen=True, kw_only=True, tag="HealthWarning"):
    """A warning about the run begins to hold, or holds no longer (see engine.run.guardian)."""

    kind: WarningKind
    subject: str = ""
    """The expert that it is about; "" for the whole run."""
    active: bool = True
    text: str = ""
    """What was measured, and what to do."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One model's answer to a question."""

    who: str
    """`student`, or the expert's name."""
    title: str
    text: str
    complete: bool = True
    """False where the token limit cut it."""


class QuestionAnswered(Event, frozen=True, kw_only=True, tag="QuestionAnswered"):
    """The student, and the experts that are in memory, answered a prompt of the user's own."""

    id: str
    """Of the Question."""
    prompt: str
    answers: tuple[Answer, ...] = ()
    """The student's first."""
    note: str = ""
    """Why there is no answer, or none of an expert."""
    seconds: float = 0.0


class Heartbeat(Event, frozen=True, kw_only=True, tag="Heartbeat"):
    """The worker is alive; never stored, never broadcast."""

    activity: str = ""
    commit: int = 0
    """Number of a request to commit all events before it; the runner answers by the pipe."""


class EarlierEvents(Event, frozen=True, kw_only=True, tag="EarlierEvents"):
    """Metrics of the steps before a resume, from the checkpoint; the runner stores those that the
    history lacks. Never stored or broadcast itself."""

    lines: tuple[str, ...]
    """Encoded events."""


AnyEvent = (
    RunStarted
    | PhaseStarted
    | DataReady
    | TextsRead
    | StepDone
    | EvalDone
    | AnswersJudged
    | CapabilitiesScored
    | SampleDrawn
    | ProbeRead
    | LayerStats
    | HardwareRead
    | CheckpointSaved
    | CheckpointRejected
    | GuardTripped
    | Progress
    | LogLine
    | CheckDone
    | ReportDone
    | Exported
    | RunPaused
    | RunResumed
    | RunEnded
    | StopRequested
    | TokenizersAudited
    | SpeedMeasured
    | HealthWarning
    | QuestionAnswered
    | Heartbeat
    | EarlierEvents
)


def is_metric(event: Event) -> bool:
    """Whether a chart shows values of the event: a resumed run needs each of them."""
    return isinstance(event, StepDone | EvalDone | CapabilitiesScored)


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="command"):
    """Base of the commands from viewers to a job; an event with the step acknowledges each."""


class Pause(Command, frozen=True, kw_only=True, tag="pause"):
    """Pause after the current step (acknowledged by RunPaused)."""


class Resume(Command, frozen=True, kw_only=True, tag="resume"):
    """Continue after a pause (acknowledged by RunResumed)."""


class Checkpoint(Command, frozen=True, kw_only=True, tag="checkpoint"):
    """Save a checkpoint after the current step (acknowledged by CheckpointSaved)."""


class Stop(Command, frozen=True, kw_only=True, tag="stop"):
    """Save a checkpoint and end (acknowledged by RunEnded)."""

    finish: bool = False
    """Decay the learning rate and save the model first."""
    signal: int = 0
    """The signal that requested it; 0 for a command."""


class Question(Command, frozen=True, kw_only=True, tag="question"):
    """Answer a prompt between two steps (acknowledged by QuestionAnswered of the same id)."""

    id: str
    prompt: str
    max_new_tokens: int = 128
    temperature: float = 0.7
    """0: greedy."""
    seed: int = 0


AnyCommand = Pause | Resume | Checkpoint | Stop | Question


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The job that a runner passes to the worker that it spawns."""

    job: Job
    root: str
    run_id: str
    attempt: int
    resume: bool = False
    """Resume from the newest checkpoint that verifies."""
    fresh: bool = False
    config: bytes = b"{}"
    """The job's config as JSON (RunConfig for a training job)."""
    training_seconds: float = 0.0
    """Unpaused worker time of earlier attempts, from the history."""


_encoder = msgspec.json.Encoder()
_event_decoder = msgspec.json.Decoder(AnyEvent)
_command_decoder = msgspec.json.Decoder(AnyCommand)


def encode(message: Event | Command) -> bytes:
    """The message as one line of JSON without the newline (NaN and infinities become null)."""
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:  # the name of a file that is not UTF-8
        return _encoder.encode(shown_values(message))


def decode_event(data: bytes | str) -> AnyEvent:
    """The event in `data`; raises msgspec.MsgspecError if it is not an event."""
    return _event_decoder.decode(data)


def decode_command(data: bytes | str) -> AnyCommand:
    """The command in `data`; raises msgspec.MsgspecError if it is not a command."""
    return _command_decoder.decode(data)


_GUARDS = {
    "non_finite": "non-finite numbers",
    "spike": "loss spike",
    "out_of_memory": "out of memory",
}
_STALLS = {
    "stalled": "the worker does not respond",
    "stopped": "the worker is suspended (SIGSTOP)",
    "going on": "the worker responds again",
}
_REASONS = {
    "interval": "",
    "asked": "requested",
    "stop": "before stopping",
    "best": "best weights so far",
    "decay": "before the learning rate decays",
    "final": "end of training",
    "phase": "end of a phase",
}


def describe(event: AnyEvent) -> str | None:
    """The event in one line of plain text, for logs, terminals and the app.

    None for heartbeats and for readings (hardware, probes, layers), which are shown as figures.
    """
    match event:
        case RunStarted() | RunPaused() | RunResumed() | RunEnded() | PhaseStarted():
            return _describe_run(event)
        case StopRequested():
            return "finish requested" if event.finish else "stop requested"
        case StepDone() | EvalDone() | CapabilitiesScored() | SampleDrawn():
            return _describe_training(event)
        case DataReady() | AnswersJudged() | TokenizersAudited() | SpeedMeasured():
            return _describe_data(event)
        case TextsRead():
            return describe_texts(event)
        case CheckpointSaved() | CheckpointRejected() | GuardTripped():
            return _describe_safety(event)
        case Progress():
            return _describe_progress(event)
        case LogLine():
            return event.text if event.level == "info" else f"{event.level}: {event.text}"
        case CheckDone() | ReportDone() | Exported():
            return _describe_result(event)
        case HealthWarning():
            return event.text if event.active else f"no longer: {event.text}"
        case QuestionAnswered():
            said = [f"{answer.who}: {answer.text!r}" for answer in event.answers]
            return f"asked {event.prompt!r}: {' · '.join(said) or event.note}"
    return None


def outcome(event: RunEnded) -> str:
    """How a job ended, without the reason: `stopped at step 1,200`."""
    return f"{event.status}{_at_step(event)}"


def _at_step(event: Event) -> str:
    """` at step N`; empty for jobs without steps, and before the first."""
    return f" at step {event.step:,}" if event.step else ""


def _describe_run(
    event: RunStarted | RunPaused | RunResumed | RunEnded | PhaseStarted,
) -> str:
    match event:
        case RunStarted():
            how = "started"
            if event.resumed_from is not None:
                how = f"resumed from step {event.resumed_from:,}"
            facts = [f"run {event.run_id} {how}", event.preset and f"preset {event.preset}"]
            facts.append(f"{event.device} {event.precision}".strip())
            facts.append(f"attempt {event.attempt}" if event.attempt > 1 else "")
            return " · ".join(fact for fact in facts if fact)
        case PhaseStarted():
            text = f"phase {event.phase}/{event.phases}: {event.name}"
            if event.last_step is not None and event.last_step > event.first_step:
                return f"{text} · steps {event.first_step:,}–{event.last_step:,}"
            if event.last_step is not None and event.last_step == event.first_step:
                return f"{text} · step {event.first_step:,}"
            return f"{text} · from step {event.first_step:,}" if event.first_step else text
        case RunPaused():
            because = "" if event.reason == "asked" else f": {event.reason}"
            return f"paused{_at_step(event)}{because}"
        case RunResumed():
            return f"resumed{_at_step(event)}"
        case RunEnded():
            text = outcome(event)
            if event.reason.startswith(text):
                return event.reason
            return f"{text}: {event.reason}" if event.reason else text


def _describe_training(event: StepDone | EvalDone | CapabilitiesScored | SampleDrawn) -> str:
    match event:
        case StepDone(skipped=True):
            return f"step {event.step:,} skipped"
        case StepDone():
            return (
                f"step {event.step:,}  loss {_number(event.loss)}  kl {_number(event.kl)}  "
                f"ce {_number(event.ce)}  lr {event.lr:.1e}  {event.tokens_per_sec:,.0f} tok/s"
            )
        case EvalDone():
            best = ", best so far" if event.best else ""
            return f"step {event.step:,}: {event.bits_per_byte:.3f} bits/byte held out{best}"
        case CapabilitiesScored():
            scores = (f"{score.capability} {score.right}/{score.asked}" for score in event.scores)
            return f"{event.who} answered correctly: {' · '.join(scores)}"
        case SampleDrawn():
            return f"sample {event.prompt!r}: {event.text!r}"


def _describe_data(
    event: DataReady | AnswersJudged | TokenizersAudited | SpeedMeasured,
) -> str:
    match event:
        case DataReady():
            skipped = f", {event.skipped_blocks:,} blocks skipped" if event.skipped_blocks else ""
            return (
                f"{event.expert}: {event.blocks:,} blocks + {event.held_out_blocks:,} held out, "
                f"{event.positions:,} positions, {event.aligned:.0%} aligned, "
                f"mean weight {event.mean_weight:.2f}{skipped}"
            )
        case AnswersJudged():
            dropped: dict[str, int] = {}
            for count in event.counts:
                if count.reason:
                    dropped[count.reason] = dropped.get(count.reason, 0) + count.count
            text = f"{event.expert}: {event.kept:,} of {event.written:,} answers kept"
            most = sorted(dropped.items(), key=lambda item: -item[1])
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in most)
            return f"{text}; dropped: {reasons}" if reasons else text
        case TokenizersAudited():
            if event.problem:
                return f"{event.expert}: {event.problem}"
            return (
                f"{event.expert}: {event.positions:,} positions, {event.aligned:.0%} aligned, "
                f"{event.reachable:.0%} of the student's tokens reachable"
            )
        case SpeedMeasured():
            return f"{event.device} {event.precision}: {event.flops / 1e12:.2f} TFLOPS"


REPEATED = "repeated"
"""Reason of a text that has come before: it is learnt once."""


def describe_texts(event: TextsRead) -> str:
    """What became of the texts, in one line."""
    whose = ": ".join(part for part in (event.expert, event.source) if part)
    parts = [f"{event.texts:,} read", f"{event.learnt:,} learnt"]
    if event.held_out:
        parts[1] += f" ({event.held_out:,} of them held out)"
    if event.cut:
        parts.append(f"{event.cut:,} cut")
    if event.left_out:
        parts.append(f"{event.left_out:,} left out")
    if event.unused:
        parts.append(f"{event.unused:,} not needed")
    text = f"{whose or 'texts'}: {', '.join(parts)}"
    reasons = "; ".join(describe_reason(reason) for reason in event.reasons)
    return f"{text}: {reasons}" if reasons else text


def describe_reason(reason: TextReason) -> str:
    """A reason with its count and its first example, in one line."""
    words = {"left_out": "", "cut": "cut, ", "file": "file not read, "}[reason.outcome]
    where = f" (first: {reason.where})" if reason.where else ""
    return f"{words}{reason.reason} {reason.count:,}{where}"


def _describe_safety(event: CheckpointSaved | CheckpointRejected | GuardTripped) -> str:
    match event:
        case CheckpointSaved():
            took = duration(event.seconds) if event.seconds >= 1 else "under 1s"
            facts = [f"{size(event.bytes)} in {took}", _REASONS[event.reason]]
            if event.best and event.reason != "best":
                facts.append(_REASONS["best"])
            known = ", ".join(fact for fact in facts if fact)
            name = event.path.rpartition("/")[2]
            return f"checkpoint of step {event.step:,} saved ({known}): {name}"
        case CheckpointRejected():
            moved = f"; moved to {event.moved_to}" if event.moved_to else ""
            return f"checkpoint {event.path} is not used: {event.reason}{moved}"
        case GuardTripped(guard="stall"):
            return _STALLS.get(event.action, event.action)
        case GuardTripped(guard="worker"):
            return event.action
        case GuardTripped():
            value = "" if event.value is None else f" ({event.value:.4g})"
            name = _GUARDS.get(event.guard, event.guard)
            return f"{name}{_at_step(event)}: {event.action}{value}"


def _describe_progress(event: Progress) -> str:
    is_bytes = event.unit in ("B", "bytes")

    def amount(value: float) -> str:
        return size(value) if is_bytes else f"{value:,.0f}"

    if not event.total and not event.done:
        return f"{event.label} …"
    parts = [amount(event.done)]
    if event.total:
        parts[0] += f" of {amount(event.total)}"
    if event.unit and not is_bytes:
        parts[0] += f" {event.unit}"
    if event.total:
        parts.append(f"{event.done / event.total:.0%}")
    if event.rate:
        parts.append(f"{amount(event.rate)}{'' if is_bytes else ' ' + event.unit}/s".strip())
    if event.eta is not None and not event.finished:
        parts.append(f"eta {duration(event.eta)}")
    return f"{event.label}  {'  '.join(parts)}"


def _describe_result(event: CheckDone | ReportDone | Exported) -> str:
    match event:
        case CheckDone(verdict="skip"):
            return f"{event.title}: skipped, {event.meaning}"
        case CheckDone():
            bound = f" ({event.bound})" if event.bound else ""
            return f"{event.title}: {event.verdict}, {event.value}{bound}"
        case ReportDone():
            return f"{event.verdict}; report: {event.path}"
        case Exported():
            return f"{event.path} written ({event.weights}, {size(event.bytes)}): {event.parity}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
