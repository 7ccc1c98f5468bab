"""Format the events of a run as lines of text: start, phases, steps, evaluations, samples, end."""

from __future__ import annotations

import textwrap
from datetime import datetime

from engine.events import (
    EvalDone,
    PhaseStarted,
    RunEnded,
    RunStarted,
    SampleDrawn,
    StepDone,
    describe,
    outcome,
)
from gladius_tui.event_lines import Layout, short_path
from gladius_tui.format import duration

RunEvent = RunStarted | PhaseStarted | StepDone | EvalDone | SampleDrawn | RunEnded

_SAMPLE_LINES = 5


class RunLines:
    """Lines for the events of a run, in order."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._log_interval = 1
        self._max_steps: int | None = None
        self._titles: dict[str, str] = {}
        self._first_eval: EvalDone | None = None
        self._last_eval: EvalDone | None = None

    def lines(self, event: RunEvent) -> list[str]:
        """The lines for `event`; none for steps between log intervals."""
        match event:
            case RunStarted():
                return self._run_started(event)
            case PhaseStarted():
                return self._phase_started(event)
            case StepDone():
                return self._step_done(event)
            case EvalDone():
                return self._eval_done(event)
            case SampleDrawn():
                return self._sample_drawn(event)
            case RunEnded():
                return self._run_ended(event)

    def _run_started(self, event: RunStarted) -> list[str]:
        self._log_interval = int(event.config.get("schedule", {}).get("log_interval", 1))
        self._max_steps = event.max_steps
        self._titles = {expert.name: expert.title for expert in event.experts}
        facts = [event.job]
        if event.target_params:
            facts.append(f"{event.target_params:,} parameters")
        if event.max_steps:
            facts.append(f"{event.max_steps:,} steps")
        if event.tokens_per_step:
            facts.append(f"{event.tokens_per_step:,} tokens per step")
        facts.append(f"pid {event.pid}")
        lines = [self._layout.style(f"GLADIUS  {describe(event)}", "bold")]
        lines += self._layout.wrapped(" · ".join(facts), "dim")
        if event.experts:
            shares = (f"{expert.title} {expert.share:.0%}" for expert in event.experts)
            lines += self._layout.wrapped(f"experts: {' · '.join(shares)}", "dim")
        return lines

    def _phase_started(self, event: PhaseStarted) -> list[str]:
        text = describe(event)
        title = self._titles.get(event.expert or "", event.expert)
        if title and event.name not in (event.expert, title):
            text = f"{text} · {title}"
        clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
        return ["", self._layout.heading(f"{text} · {clock}")]

    def _step_done(self, event: StepDone) -> list[str]:
        is_last = event.step == self._max_steps
        is_due = event.step % self._log_interval == 0 or event.step == 1
        if not (is_due or is_last or event.skipped):
            return []
        parts = [f"  {describe(event)}"]
        if self._max_steps:
            parts.append(f"{event.step / self._max_steps:.0%}")
        eta = event.run_eta if event.run_eta is not None else event.phase_eta
        if eta is not None:
            parts.append(f"eta {duration(eta)}")
        return [self._layout.style("  ".join(parts), "yellow" if event.skipped else "")]

    def _eval_done(self, event: EvalDone) -> list[str]:
        text = f"  {describe(event)}"
        if self._last_eval is not None:
            text += f" ({event.bits_per_byte - self._last_eval.bits_per_byte:+.3f})"
        self._first_eval = self._first_eval or event
        self._last_eval = event
        lines = [self._layout.style(text, "cyan")]
        for score in event.scores:
            parts = [f"{score.bits_per_byte:.3f} bits/byte"]
            if score.kl is not None:
                parts.append(f"KL {score.kl:.3f}")
            if score.agreement is not None:
                parts.append(f"agreement {score.agreement:.0%}")
            lines.append(f"    {score.expert}: {'  '.join(parts)}")
        return lines

    def _sample_drawn(self, event: SampleDrawn) -> list[str]:
        width = self._layout.width - 4
        prompt = textwrap.shorten(event.prompt, width - 9, placeholder=" …")
        text = " ".join(event.text.split())
        wrapped = textwrap.wrap(text, width, max_lines=_SAMPLE_LINES, placeholder=" …")
        quoted = self._layout.style(f"  sample > {prompt}", "dim")
        return [quoted, *(f"    {line}" for line in wrapped)]

    def _run_ended(self, event: RunEnded) -> list[str]:
        style = {"completed": "green", "failed": "red"}.get(event.status, "yellow")
        facts = [outcome(event)]
        if event.tokens_seen:
            facts.append(f"{event.tokens_seen:,} tokens")
        if event.seconds:
            facts.append(duration(event.seconds))
        lines = ["", self._layout.style(" · ".join(facts), style)]
        if event.reason and event.status != "failed":  # a failure is reported on standard error
            lines.append(f"  {event.reason}")
        first, last = self._first_eval, self._last_eval
        if first is not None and last is not None and first is not last:
            change = f"{first.bits_per_byte:.3f} → {last.bits_per_byte:.3f} bits/byte"
            lines.append(f"  held out: {change}, steps {first.step:,} to {last.step:,}")
        if event.model_path:
            lines.append(f"  model: {short_path(event.model_path)}")
        return lines
