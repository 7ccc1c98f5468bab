"""Format the events of a job as lines of text: a class for each kind of event."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from engine.events import (
    AnswersJudged,
    AnyEvent,
    CapabilitiesScored,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    GuardTripped,
    LogLine,
    PhaseStarted,
    Progress,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from gladius_tui.format import NONE, duration, size
from gladius_tui.terminal import paint, printable

PROGRESS_SECONDS = 5.0
"""Least time between two lines of the same task."""
STANDSTILL_SECONDS = 30.0
"""Least time between two lines of the same task when nothing was done in between."""

_LABEL = 10
_MAX_RULE = 100


@dataclass(frozen=True)
class Layout:
    """How a line is laid out: an indented label column, then the text."""

    colour: bool
    width: int

    def style(self, text: str, style: str) -> str:
        """The text in a style of `terminal.paint`."""
        return paint(text, style, self.colour)

    def item(self, label: str, text: str, style: str = "") -> str:
        """A line with a label; without one the text starts in the label column."""
        return f"  {self.style(f'{label:<{_LABEL}}', style)} {text}" if label else f"  {text}"

    def items(self, label: str, lines: Sequence[str]) -> list[str]:
        """Several lines under one label."""
        return [self.item(label if n == 0 else " ", line) for n, line in enumerate(lines)]

    def wrapped(self, label: str, text: str) -> list[str]:
        """The text under one label, wrapped to the width."""
        return self.items(label, textwrap.wrap(text, self.width - _LABEL - 3))

    def heading(self, text: str) -> str:
        """The text in bold, followed by a rule."""
        rule = "─" * max(4, min(self.width, _MAX_RULE) - len(text) - 4)
        return f"{self.style('── ' + text, 'bold')} {self.style(rule, 'dim')}"


class TrainingLines:
    """Lines for the events of a training run, from its start to its end."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._log_interval = 1
        self._max_steps: int | None = None
        self._titles: dict[str, str] = {}
        self._first_eval: EvalDone | None = None
        self._last_eval: EvalDone | None = None

    def lines(self, event: AnyEvent) -> list[str]:
        """The lines for `event`; none for other events and for steps between log intervals."""
        match event:
            case RunStarted():
                return self._run_started(event)
            case PhaseStarted():
                return self._phase_started(event)
            case DataReady():
                return self._data_ready(event)
            case StepDone():
                return self._step_done(event)
            case EvalDone():
                return self._eval_done(event)
            case CapabilitiesScored():
                return self._capabilities_scored(event)
            case AnswersJudged():
                return self._answers_judged(event)
            case SampleDrawn():
                return self._sample_drawn(event)
            case RunEnded():
                return self._run_ended(event)
        return []

    def _run_started(self, event: RunStarted) -> list[str]:
        self._log_interval = int(event.config.get("schedule", {}).get("log_interval", 1))
        self._max_steps = event.max_steps
        self._titles = {expert.name: expert.title for expert in event.experts}
        facts = [event.job]
        if event.preset:
            facts.append(f"preset {event.preset}")
        if event.device:
            facts.append(f"{event.device} {event.precision}".strip())
        if event.target_params:
            facts.append(f"{event.target_params:,} parameters")
        if event.tokens_per_step:
            facts.append(f"{event.tokens_per_step:,} tokens per step")
        layout = self._layout
        lines = [layout.style("GLADIUS  ", "bold") + " · ".join(facts)]
        ids = [f"run {event.run_id}", f"pid {event.pid}"]
        if event.attempt > 1:
            ids.append(f"attempt {event.attempt}")
        lines.append(layout.style("  " + " · ".join(ids), "dim"))
        if event.experts:
            shares = (f"{expert.title} {expert.share:.0%}" for expert in event.experts)
            lines.append(layout.item("experts", " · ".join(shares)))
        if event.resumed_from is not None:
            text = f"from the checkpoint of step {event.resumed_from:,}"
            lines.append(layout.item("resumed", text))
        return lines

    def _phase_started(self, event: PhaseStarted) -> list[str]:
        text = f"phase {event.phase}/{event.phases}  {event.name}"
        title = self._titles.get(event.expert or "", event.expert)
        if title and event.name not in (event.expert, title):
            text += f" · {title}"
        if event.last_step is not None and event.last_step > event.first_step:
            text += f" · steps {event.first_step:,}–{event.last_step:,}"
        elif event.last_step is not None and event.last_step == event.first_step:
            text += f" · step {event.first_step:,}"
        elif event.first_step:
            text += f" · from step {event.first_step:,}"
        clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
        return ["", self._layout.heading(f"{text} · {clock}")]

    def _data_ready(self, event: DataReady) -> list[str]:
        text = (
            f"{event.expert}: {event.blocks:,} blocks + {event.held_out_blocks:,} held out, "
            f"{event.positions:,} positions, {event.aligned:.0%} aligned, "
            f"weight {event.mean_weight:.2f}"
        )
        if event.skipped_blocks:
            text += f", {event.skipped_blocks:,} blocks skipped"
        return [self._layout.item("data", text)]

    def _step_done(self, event: StepDone) -> list[str]:
        last = event.step == self._max_steps
        if not (event.step % self._log_interval == 0 or event.step == 1 or last or event.skipped):
            return []
        if self._max_steps:
            total = f"{self._max_steps:,}"
            step = f"{event.step:>{len(total)},}/{total}"
        else:
            step = f"{event.step:>7,}"
        parts = [
            f"  step {step}",
            f"loss {_loss(event.loss)}",
            f"kl {_loss(event.kl)}",
            f"ce {_loss(event.ce)}",
            f"lr {event.lr:.1e}",
            f"{event.tokens_per_sec:,.0f} tok/s",
        ]
        eta = event.run_eta if event.run_eta is not None else event.phase_eta
        if eta is not None:
            parts.append(f"eta {duration(eta)}")
        if event.skipped:
            parts.append(self._layout.style("skipped", "yellow"))
        return ["  ".join(parts)]

    def _eval_done(self, event: EvalDone) -> list[str]:
        self._first_eval = self._first_eval or event
        previous, self._last_eval = self._last_eval, event
        text = f"{event.bits_per_byte:.3f} bits/byte held out"
        if previous is not None:
            text += f" ({event.bits_per_byte - previous.bits_per_byte:+.3f})"
        if event.best:
            text += ", best so far"
        layout = self._layout
        lines = [layout.item("eval", layout.style(text, "cyan"), "cyan")]
        for score in event.scores:
            parts = [f"{score.bits_per_byte:.3f} bits/byte"]
            if score.kl is not None:
                parts.append(f"KL {score.kl:.3f}")
            if score.agreement is not None:
                parts.append(f"agreement {score.agreement:.0%}")
            lines.append(layout.item(" ", f"{score.expert}: {'  '.join(parts)}"))
        return lines

    def _capabilities_scored(self, event: CapabilitiesScored) -> list[str]:
        who = self._titles.get(event.who, event.who)
        parts = [f"{score.capability} {score.right}/{score.asked}" for score in event.scores]
        return self._layout.wrapped("capability", f"{who}: {' · '.join(parts)}")

    def _answers_judged(self, event: AnswersJudged) -> list[str]:
        dropped: dict[str, int] = {}
        for entry in event.counts:
            if entry.reason:
                dropped[entry.reason] = dropped.get(entry.reason, 0) + entry.count
        text = f"{event.expert}: {event.kept:,} of {event.written:,} answers kept"
        if dropped:
            most_first = sorted(dropped.items(), key=lambda item: -item[1])
            reasons = (f"{reason.replace('_', ' ')} {count:,}" for reason, count in most_first)
            text += f"; dropped: {', '.join(reasons)}"
        return self._layout.wrapped("answers", text)

    def _sample_drawn(self, event: SampleDrawn) -> list[str]:
        width = self._layout.width - 15
        prompt = " ".join(event.prompt.split())
        quoted = f"> {_cut(prompt, width - 2)}"
        # An untrained student writes control characters too.
        text = printable(" ".join(event.text.split()))
        wrapped = textwrap.wrap(text, width, max_lines=5, placeholder=" …")
        return self._layout.items("sample", [self._layout.style(quoted, "dim"), *wrapped])

    def _run_ended(self, event: RunEnded) -> list[str]:
        style = {"completed": "green", "failed": "red"}.get(event.status, "yellow")
        facts = [f"{event.status} at step {event.step:,}" if event.step else event.status]
        if event.tokens_seen:
            facts.append(f"{event.tokens_seen:,} tokens")
        if event.seconds:
            facts.append(duration(event.seconds))
        lines = ["", self._layout.style(" · ".join(facts), style)]
        if event.reason and event.status != "failed":  # a failure is reported on standard error
            lines.append(f"  {event.reason}")
        first, last = self._first_eval, self._last_eval
        if first is not None and last is not None and first is not last:
            change = f"bits/byte {first.bits_per_byte:.3f} → {last.bits_per_byte:.3f}"
            steps = f"steps {first.step:,} to {last.step:,}"
            lines.append(self._layout.item("held out", f"{change}, {steps}"))
        if event.model_path:
            lines.append(self._layout.item("model", short_path(event.model_path)))
        return lines


class ProgressLines:
    """Lines for the progress of long tasks: at most one line per task every few seconds."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._printed: dict[str, tuple[float, float]] = {}
        """By task: when its last line was printed, and what was done then."""

    def lines(self, event: Progress) -> list[str]:
        """The line for `event`; none if the task's last line is too recent."""
        printed_at, printed_done = self._printed.get(event.task, (-STANDSTILL_SECONDS, -1.0))
        interval = PROGRESS_SECONDS if event.done != printed_done else STANDSTILL_SECONDS
        if not event.finished and event.time - printed_at < interval:
            return []
        self._printed[event.task] = (event.time, event.done)
        return [self._layout.item("", progress_text(event))]


def progress_text(event: Progress) -> str:
    """The label, amounts, share, rate and ETA of a task."""
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


class MessageLines:
    """Lines for single messages: checkpoints, guards, pauses, log lines."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def lines(self, event: AnyEvent) -> list[str]:
        """The line for `event`; none for other events."""
        item = self._layout.item
        match event:
            case CheckpointSaved():
                kept = ", best so far" if event.best and event.reason != "best" else ""
                text = f"step {event.step:,} saved, {size(event.bytes)} in {event.seconds:.1f} s"
                return [item("checkpoint", f"{text} ({event.reason}{kept})", "green")]
            case CheckpointRejected():
                moved = f"; moved to {event.moved_to}" if event.moved_to else ""
                text = f"{event.path} is not used: {event.reason}{moved}"
                return [item("checkpoint", text, "yellow")]
            case GuardTripped():
                value = "" if event.value is None else f" ({event.value:.4g})"
                name = event.guard.replace("_", " ")
                return [item("guard", f"{name}: {event.action}{value}", "yellow")]
            case LogLine():
                style = {"warning": "yellow", "error": "red"}.get(event.level, "")
                return [item(event.level if style else "", event.text, style)]
            case RunPaused():
                return [item("paused", f"{_at_step(event)} ({event.reason})".strip(), "yellow")]
            case RunResumed():
                return [item("resumed", _at_step(event).strip(), "yellow")]
        return []


def _at_step(event: AnyEvent) -> str:
    return f" at step {event.step:,}" if event.step else ""


def _loss(value: float | None) -> str:
    """A loss in nats; a dash in the same width if it was not finite."""
    return f"  {NONE}  " if value is None else f"{value:.3f}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def short_path(path: str) -> str:
    """The path relative to the current folder if it is below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path
