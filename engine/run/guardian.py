"""Warnings about a training run, each with what to do, folded from its events.

A warning begins once and ends when it no longer holds. Pure: no clock, no files. The runner's
recorder folds every event and adds the warnings to the run's own events, so that all viewers have
them and each can be read again in the log.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Protocol

from engine.events import (
    AnyEvent,
    CheckpointSaved,
    DataReady,
    EvalDone,
    HardwareRead,
    HealthWarning,
    PhaseStarted,
    RunEnded,
    RunStarted,
    StepDone,
    WarningKind,
)
from engine.units import size

MAX_EPOCHS = 4.0
"""More repetitions of the same text improve a model hardly any further (arXiv 2305.16264)."""

_RISE_EVALUATIONS = 3
"""Evaluations after the best one, all of them worse, that make a rise."""
_RISE = 0.01
"""Least rise of held-out bits per byte over the best, as a share of it."""
_SPIKE_WINDOW, _SPIKE_MEDIAN, _SPIKE_FACTOR, _SPIKES = 200, 64, 3.0, 3
"""Steps in which spikes are counted; steps of the running median; a loss above this multiple of it
is a spike; spikes that make a warning."""
_PLATEAU_EVALUATIONS = 4
_PLATEAU_FALL = 0.01
"""KL falls if its best of the last evaluations is this share below the best of those before."""
_PLATEAU_KL = 0.02
"""Nats below which nothing is left to learn."""
_CHECKPOINT_MARGIN, _DISK_ENOUGH = 1.05, 1.2
"""Free space is short below the first multiple of a checkpoint, and enough above the second."""
_BYTES_PER_PARAMETER = 12
"""Of a full checkpoint: weights and both moments of AdamW in fp32."""
_SPEED_WINDOW, _SPEED_RECENT, _SPEED_KNOWN = 256, 8, 40
_SLOW, _FAST_AGAIN = 0.5, 0.7
"""Shares of the median throughput at which the warning begins and ends."""

Found = dict[str, str]
"""Texts of the warnings that hold, by what they are about ("": the run)."""


class Watch(Protocol):
    """One kind of warning."""

    kind: WarningKind

    def take(self, event: AnyEvent) -> Found | None:
        """The warnings that hold after `event`; None if the event decides nothing."""
        ...


class Guardian:
    """All warnings of one run. Feed it the events in order."""

    def __init__(self) -> None:
        self._watches: tuple[Watch, ...] = (
            Overfitting(),
            Spikes(),
            Plateau(),
            Epochs(),
            Disk(),
            Throughput(),
        )
        self._active: dict[tuple[WarningKind, str], str] = {}

    def replay(self, events: Iterable[AnyEvent]) -> None:
        """Take in events of earlier attempts, with the warnings that were given then."""
        for event in events:
            if isinstance(event, HealthWarning):
                self._note(event)
            else:
                for watch in self._watches:
                    watch.take(event)

    def take(self, event: AnyEvent) -> list[HealthWarning]:
        """The warnings that begin or end with this event."""
        if isinstance(event, RunEnded | HealthWarning):
            return []  # the end of a run is its last event
        changes = []
        for watch in self._watches:
            found = watch.take(event)
            if found is not None:
                changes += self._changes(watch.kind, found, event.step)
        for change in changes:
            self._note(change)
        return changes

    def _changes(self, kind: WarningKind, found: Found, step: int) -> list[HealthWarning]:
        active = {subject: text for (k, subject), text in self._active.items() if k == kind}
        begun = [(subject, text, True) for subject, text in found.items() if subject not in active]
        ended = [(subject, text, False) for subject, text in active.items() if subject not in found]
        return [
            HealthWarning(step=step, kind=kind, subject=subject, text=text, active=is_active)
            for subject, text, is_active in (*begun, *ended)
        ]

    def _note(self, warning: HealthWarning) -> None:
        key = warning.kind, warning.subject
        if warning.active:
            self._active[key] = warning.text
        else:
            self._active.pop(key, None)


class Overfitting:
    """Held-out loss rises while the training loss falls, within one phase."""

    kind: WarningKind = "overfitting"

    def __init__(self) -> None:
        self._phase: int | None = None
        self._evaluations: list[tuple[int, float, float | None]] = []
        self._losses: list[float] = []

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted() if event.resumed_from is not None:
                last = event.resumed_from
                self._evaluations = [e for e in self._evaluations if e[0] <= last]
                self._losses = []
            case PhaseStarted() if event.phase == self._phase:
                pass  # of a resumed run
            case RunStarted() | PhaseStarted():
                self._phase = event.phase if isinstance(event, PhaseStarted) else None
                self._evaluations, self._losses = [], []
                return {}
            case StepDone() if event.loss is not None and not event.skipped:
                self._losses.append(event.loss)
            case EvalDone():
                mean = sum(self._losses) / len(self._losses) if self._losses else None
                self._evaluations.append((event.step, event.bits_per_byte, mean))
                self._losses = []
                return _found(rise_text(self._evaluations))
        return None


def rise_text(evaluations: Sequence[tuple[int, float, float | None]]) -> str:
    """The warning about a rise of the held-out loss; "" without one. Pure.

    Args:
        evaluations: (step, held-out bits per byte, mean training loss since the one before).
    """
    if len(evaluations) <= _RISE_EVALUATIONS:
        return ""
    at = min(range(len(evaluations)), key=lambda n: evaluations[n][1])
    step, best, loss = evaluations[at]
    after = evaluations[at + 1 :]
    newest, newest_loss = after[-1][1] if after else best, after[-1][2] if after else None
    if len(after) < _RISE_EVALUATIONS or newest < best * (1 + _RISE):
        return ""
    if loss is None or newest_loss is None or newest_loss >= loss:
        return ""
    return (
        f"held-out loss has risen since step {step:,} ({best:.3f} → {newest:.3f} bits/byte) while "
        "the training loss falls: the student memorises its text; add text (--data), or end with: "
        "gladius_train stop --finish (the best weights are kept)"
    )


class Spikes:
    """Several steps with a loss or gradient far above the usual."""

    kind: WarningKind = "spikes"

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_SPIKE_MEDIAN)
        self._spikes: deque[int] = deque()

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted() | PhaseStarted():
                self._losses.clear()
                if isinstance(event, RunStarted):
                    self._spikes.clear()
                return None
            case StepDone():
                return self._step(event)
        return None

    def _step(self, event: StepDone) -> Found:
        known = len(self._losses) >= _SPIKE_MEDIAN // 4
        high = known and (event.loss or 0.0) > _SPIKE_FACTOR * median(self._losses)
        if event.skipped or event.loss is None or high:
            self._spikes.append(event.step)
        else:
            self._losses.append(event.loss)
        while self._spikes and self._spikes[0] <= event.step - _SPIKE_WINDOW:
            self._spikes.popleft()
        if len(self._spikes) < _SPIKES:
            return {}
        return {
            "": f"{len(self._spikes)} spikes of loss or gradient within {_SPIKE_WINDOW} steps, the "
            f"last at step {self._spikes[-1]:,}: if they continue, start again with a lower rate "
            "(train --fresh --set optimizer.lr=...) and look for broken text"
        }


class Plateau:
    """The KL of an expert that is being taught no longer falls."""

    kind: WarningKind = "plateau"

    def __init__(self) -> None:
        self._phase: int | None = None
        self._kl: dict[str, list[tuple[int, float]]] = {}
        self._titles: dict[str, str] = {}
        self._taught: str | None = None
        """The expert of the phase; None: all."""

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted():
                return self._begin(event)
            case PhaseStarted() if event.phase != self._phase:
                self._phase, self._taught, self._kl = event.phase, event.expert, {}
                return {}
            case EvalDone():
                return self._evaluated(event)
        return None

    def _begin(self, event: RunStarted) -> Found | None:
        self._titles = {expert.name: expert.title for expert in event.experts}
        last = event.resumed_from
        if last is not None:
            self._kl = {n: [v for v in kl if v[0] <= last] for n, kl in self._kl.items()}
            return None
        self._phase, self._kl = None, {}
        return {}

    def _evaluated(self, event: EvalDone) -> Found:
        found: Found = {}
        for score in event.scores:
            if score.kl is None or self._taught not in (None, score.expert):
                continue
            values = self._kl.setdefault(score.expert, [])
            values.append((event.step, score.kl))
            title = self._titles.get(score.expert, score.expert)
            if text := plateau_text(title, values):
                found[score.expert] = text
        return found


def plateau_text(title: str, values: Sequence[tuple[int, float]]) -> str:
    """The warning about a KL that no longer falls; "" if it does. Pure.

    Args:
        values: (step, KL in nats) at the evaluations of one phase.
    """
    before, recent = values[:-_PLATEAU_EVALUATIONS], values[-_PLATEAU_EVALUATIONS:]
    if not before or len(values) < _PLATEAU_EVALUATIONS + 2:
        return ""
    step, best = min(before, key=lambda value: value[1])
    if best < _PLATEAU_KL or min(kl for _, kl in recent) < best * (1 - _PLATEAU_FALL):
        return ""
    return (
        f"the KL to {title} has not fallen since step {step:,} ({best:.3f} nats): more steps teach "
        "little; add text, mix by need (schedule.mix=deficits), or end with: gladius_train stop "
        "--finish"
    )


class Epochs:
    """The text was used more often than helps. Not for text that is streamed."""

    kind: WarningKind = "epochs"

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._streams = False

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted():
                self._streams = event.streams_text
            case DataReady():
                self._tokens[event.expert] = event.student_tokens
            case StepDone():
                return _found("" if self._streams else epochs_text(event.tokens_seen, self._tokens))
        return None


def epochs_text(tokens_seen: int, available: Mapping[str, int]) -> str:
    """The warning about repeated text; "" if it is not due. Pure.

    Args:
        tokens_seen: student tokens that were trained on.
        available: student tokens of each expert's text.
    """
    total = sum(available.values())
    if not total or tokens_seen <= MAX_EPOCHS * total:
        return ""
    return (
        f"the text ({total:,} tokens) has been used more than {MAX_EPOCHS:g} times: further epochs "
        "bring little; add text with --data"
    )


class Disk:
    """The disk has no room for the next checkpoint."""

    kind: WarningKind = "disk"

    def __init__(self) -> None:
        self._needed = 0
        self._short = False

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted():
                self._needed = self._needed or event.target_params * _BYTES_PER_PARAMETER
            case CheckpointSaved() if event.reason != "best":
                self._needed = event.bytes
            case HardwareRead() if event.disk_free:
                factor = _DISK_ENOUGH if self._short else _CHECKPOINT_MARGIN
                self._short = event.disk_free < factor * self._needed
                if not self._short:
                    return {}
                return {
                    "": f"only {size(event.disk_free)} are free and the next checkpoint needs "
                    f"{size(self._needed)}: free some space (gladius_train clean shows what can "
                    "go)"
                }
        return None


class Throughput:
    """Tokens per second fell far below their median, within one phase."""

    kind: WarningKind = "throughput"

    def __init__(self) -> None:
        self._speeds: deque[float] = deque(maxlen=_SPEED_WINDOW)
        self._usual = 0.0
        """The median when the warning began."""

    def take(self, event: AnyEvent) -> Found | None:
        match event:
            case RunStarted() | PhaseStarted():
                self._speeds.clear()
                self._usual = 0.0
                return {}
            case StepDone() if not event.skipped:
                self._speeds.append(event.tokens_per_sec)
                if len(self._speeds) % _SPEED_RECENT and len(self._speeds) < _SPEED_WINDOW:
                    return None
                return self._judge()
        return None

    def _judge(self) -> Found | None:
        if len(self._speeds) < _SPEED_KNOWN:
            return None
        recent = median(list(self._speeds)[-_SPEED_RECENT:])
        usual = self._usual or median(self._speeds)
        if recent >= (_FAST_AGAIN if self._usual else _SLOW) * usual:
            self._usual = 0.0
            return {}
        self._usual = usual
        return {
            "": f"throughput fell to {recent:,.0f} tokens/s, its median was {usual:,.0f}: look for "
            "another program on this machine, heat, or a full memory"
        }


def _found(text: str) -> Found:
    return {"": text} if text else {}
