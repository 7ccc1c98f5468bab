"""Owns how events read as lines of text, for terminals, logs and pipes. It knows no job but by
its events, and no time but theirs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import IO

from engine.events import (
    AnswersJudged,
    AnyEvent,
    CapabilitiesScored,
    CheckDone,
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    Exported,
    GuardTripped,
    Heartbeat,
    LogLine,
    PhaseStarted,
    Progress,
    ReportDone,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
    describe,
    encode,
    outcome,
)
from gladius_tui.format import duration

PROGRESS_SECONDS = 5.0
"""Least time between two lines of the same task."""
STANDSTILL_SECONDS = 30.0
"""The same where nothing has moved since."""

_VERDICTS = {
    "pass": ("✓", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✗", "red"),
    "skip": ("–", "dim"),
}

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def wants_colour(stream: IO[str]) -> bool:
    """Colour is for terminals, and not under NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, colour: bool) -> str:
    """The text in a style (bold, dim, red, green, yellow, cyan; "" for none), where wanted."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if colour and style else text


class Renderer:
    """Turns a run's events, in order, into lines."""

    def __init__(self, *, colour: bool = False, width: int = 100) -> None:
        self._colour = colour
        self._width = max(60, width)
        self._log_interval = 1
        self._max_steps: int | None = None
        self._titles: dict[str, str] = {}
        self._first_eval: EvalDone | None = None
        self._last_eval: EvalDone | None = None
        self._told: dict[str, tuple[float, float]] = {}
        self._check_group = ""
        self._verdict = ""

    def lines(self, event: AnyEvent) -> list[str]:
        """The lines that tell `event`; none for what is not worth one."""
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
            case Progress():
                return self._progress(event)
            case CheckpointSaved():
                return self._described(event, "green")
            case CheckpointRejected() | GuardTripped() | RunPaused() | RunResumed():
                return self._described(event, "yellow")
            case LogLine():
                style = {"warning": "yellow", "error": "red"}.get(event.level, "")
                return self._described(event, style)
            case DataReady():
                return self._described(event)
            case AnswersJudged() | CapabilitiesScored():
                return textwrap.wrap(
                    f"  {describe(event)}",
                    self._width,
                    subsequent_indent="    ",
                    break_on_hyphens=False,
                )
            case CheckDone():
                return self._check_done(event)
            case ReportDone():
                return self._report_done(event)
            case Exported():
                path = Path(_short_path(event.path))
                beside = ", ".join(str(path.with_name(name)) for name in event.beside)
                return ["", *self._described(event, "green"), self._item("beside", beside)]
            case RunEnded():
                return self._run_ended(event)
        return []

    def _style(self, text: str, style: str) -> str:
        return paint(text, style, self._colour)

    def _item(self, label: str, text: str, style: str = "") -> str:
        return f"  {self._style(f'{label:<10}', style)} {text}" if label else f"  {text}"

    def _described(self, event: AnyEvent, style: str = "") -> list[str]:
        return [f"  {self._style(describe(event) or '', style)}"]

    def _heading(self, text: str) -> str:
        rule = "─" * max(4, min(self._width, 100) - len(text) - 4)
        return f"{self._style('── ' + text, 'bold')} {self._style(rule, 'dim')}"

    def _run_started(self, event: RunStarted) -> list[str]:
        self._log_interval = int(event.config.get("schedule", {}).get("log_interval", 1))
        self._max_steps = event.max_steps
        self._titles = {expert.name: expert.title for expert in event.experts}
        lines = [self._style("GLADIUS  ", "bold") + (describe(event) or "")]
        about = [f"{event.job} job", f"pid {event.pid}"]
        if event.target_params:
            about.append(f"{event.target_params:,} parameters")
        if event.tokens_per_step:
            about.append(f"{event.tokens_per_step:,} tokens per step")
        lines.append(self._style("  " + " · ".join(about), "dim"))
        if event.experts:
            shares = (f"{expert.title} {expert.share:.0%}" for expert in event.experts)
            lines.append(f"  {'experts':<10} " + " · ".join(shares))
        return lines

    def _phase_started(self, event: PhaseStarted) -> list[str]:
        text = describe(event)
        title = self._titles.get(event.expert or "", event.expert)
        if title and event.name not in (event.expert, title):
            text = f"{text} · {title}"
        clock = datetime.fromtimestamp(event.time).strftime("%H:%M:%S")
        return ["", self._heading(f"{text} · {clock}")]

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
            f"loss {_number(event.loss)}",
            f"kl {_number(event.kl)}",
            f"ce {_number(event.ce)}",
            f"lr {event.lr:.1e}",
            f"{event.tokens_per_sec:,.0f} tok/s",
        ]
        eta = event.run_eta if event.run_eta is not None else event.phase_eta
        if eta is not None:
            parts.append(f"eta {duration(eta)}")
        if event.skipped:
            parts.append(self._style("skipped", "yellow"))
        return ["  ".join(parts)]

    def _eval_done(self, event: EvalDone) -> list[str]:
        self._first_eval = self._first_eval or event
        before, self._last_eval = self._last_eval, event
        text = describe(event) or ""
        if before is not None:
            text += f" ({event.bits_per_byte - before.bits_per_byte:+.3f})"
        lines = [f"  {self._style(text, 'cyan')}"]
        for score in event.scores:
            parts = [f"{score.bits_per_byte:.3f} bits/byte"]
            if score.kl is not None:
                parts.append(f"KL {score.kl:.3f}")
            if score.agreement is not None:
                parts.append(f"agreement {score.agreement:.0%}")
            lines.append(self._item("", f"{'':<10} {score.expert}: {'  '.join(parts)}"))
        return lines

    def _sample_drawn(self, event: SampleDrawn) -> list[str]:
        room = self._width - 15
        prompt = " ".join(event.prompt.split())
        lines = [self._item("sample", self._style(f"> {_cut(prompt, room - 2)}", "dim"))]
        # A young student writes control characters too; they must not reach the terminal.
        text = "".join(c if c.isprintable() else " " for c in " ".join(event.text.split()))
        wrapped = textwrap.wrap(text, room, max_lines=5, placeholder=" …")
        return lines + [self._item("", f"{'':<10} {line}") for line in wrapped]

    def _progress(self, event: Progress) -> list[str]:
        told_at, told = self._told.get(event.task, (-STANDSTILL_SECONDS, -1.0))
        least = PROGRESS_SECONDS if event.done != told else STANDSTILL_SECONDS
        if not event.finished and event.time - told_at < least:
            return []
        self._told[event.task] = (event.time, event.done)
        return self._described(event)

    def _check_done(self, event: CheckDone) -> list[str]:
        lines = []
        if event.group != self._check_group:
            self._check_group = event.group
            lines += ["", self._heading("structure" if event.group == "structural" else "quality")]
        mark, style = _VERDICTS[event.verdict]
        text = event.value if event.verdict != "skip" else event.meaning
        if event.bound and event.verdict != "skip":
            text += self._style(f"  ({event.bound})", "dim")
        if event.former and event.former != event.value:
            text += self._style(f"  was {event.former}", "dim")
        lines.append(f"  {self._style(f'{mark} {event.verdict}', style)}  {event.title:<24} {text}")
        if event.detail and event.verdict != "skip":
            room = self._width - 10
            for line in event.detail.splitlines():
                plain = "".join(c if c.isprintable() else " " for c in line)
                lines += [f"{'':<10}{part}" for part in textwrap.wrap(plain, room)]
        return lines

    def _report_done(self, event: ReportDone) -> list[str]:
        self._verdict = event.verdict
        style = "red" if event.structure == "broken" else "green"
        if event.structure == "sound" and event.quality in ("low", "unknown"):
            style = "yellow"
        return [
            "",
            self._item("verdict", self._style(event.verdict, style), style),
            self._item("report", _short_path(event.path)),
        ]

    def _run_ended(self, event: RunEnded) -> list[str]:
        style = {"completed": "green", "failed": "red"}.get(event.status, "yellow")
        facts = [outcome(event)]
        if event.tokens_seen:
            facts.append(f"{event.tokens_seen:,} tokens")
        if event.seconds:
            facts.append(duration(event.seconds))
        lines = ["", self._style(" · ".join(facts), style)]
        if event.reason and event.status != "failed" and event.reason != self._verdict:
            lines.append(f"  {event.reason}")
        first, last = self._first_eval, self._last_eval
        if first is not None and last is not None and first is not last:
            text = f"bits/byte {first.bits_per_byte:.3f} → {last.bits_per_byte:.3f}"
            lines.append(self._item("held out", f"{text}, steps {first.step:,} to {last.step:,}"))
        if event.model_path:
            lines.append(self._item("model", _short_path(event.model_path)))
        return lines


def _number(value: float | None) -> str:
    return "  –  " if value is None else f"{value:.3f}"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _short_path(path: str) -> str:
    """The path as seen from the current folder when it lies below that."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


def print_lines(lines: Iterable[str], stream: IO[str] | None = None) -> bool:
    """Write the lines to `stream` (standard output); False when it is broken.

    A closed pipe or a full disk must not end a run: from then on what is written there is lost.
    """
    out: IO[str] = sys.stdout if stream is None else stream
    try:
        out.write("".join(f"{line}\n" for line in lines))
        out.flush()
        return True
    except (OSError, ValueError):
        _silence(out)
        return False


def _silence(stream: IO[str]) -> None:
    """Lead the stream nowhere, so that Python's own flush at exit doesn't fail on it again."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


class Printer:
    """Writes events to a stream as lines, or as JSON lines; `quiet` leaves only the end."""

    def __init__(
        self, stream: IO[str] | None = None, *, as_json: bool = False, quiet: bool = False
    ) -> None:
        self._stream: IO[str] = sys.stdout if stream is None else stream
        self._as_json = as_json
        self._quiet = quiet
        self._broken = False
        width = 100
        if self._stream.isatty():
            with contextlib.suppress(OSError):
                width = os.get_terminal_size(self._stream.fileno()).columns
        self._renderer = Renderer(colour=wants_colour(self._stream), width=width)

    def __call__(self, event: AnyEvent) -> None:
        if self._broken or isinstance(event, Heartbeat):
            return
        if self._as_json:
            lines = [encode(event).decode()]
        elif self._quiet and isinstance(event, ReportDone):
            return  # the end says its verdict again
        else:
            lines = self._renderer.lines(event)
            if self._quiet and not isinstance(event, RunEnded):
                return
            if self._quiet:
                lines = [line for line in lines if line]  # nothing stands above it
        if lines:
            self._broken = not print_lines(lines, self._stream)

    def take_in(self, event: AnyEvent) -> None:
        """Know of an event that later lines refer to, without printing it."""
        self._renderer.lines(event)
