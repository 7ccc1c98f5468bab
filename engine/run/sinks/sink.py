"""Send a run's metrics to TensorBoard, Weights & Biases or Trackio, each in a thread of its own.

A sink can't stop or slow a run: events wait in a bounded queue and are dropped when it is full, and
the first error turns the sink off. Its libraries are imported in its thread.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.errors import MissingError
from engine.events import (
    AnyEvent,
    CapabilitiesScored,
    EvalDone,
    RunEnded,
    RunStarted,
    SampleDrawn,
    StepDone,
)
from engine.run.rollup import measurements

_QUEUE = 20_000
_CLOSE_SECONDS = 10.0
"""A sink that is not done by then is left behind."""


@dataclass(frozen=True)
class RunInfo:
    """What a sink is opened for.

    Attributes:
        name: the run's name, or its id.
        folder: where it writes, below tmp/.
        config: the complete config as plain data.
    """

    run_id: str
    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Where metrics go. All methods are called in one thread; any error turns it off."""

    def log(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """Metrics at a step; `time` in Unix seconds."""
        ...

    def text(self, step: int, time: float, name: str, text: str) -> None:
        """A text at a step."""
        ...

    def close(self, status: str) -> None:
        """Write what is pending; `status`: completed, stopped, failed, or "" if unknown."""
        ...


@dataclass(frozen=True)
class SinkKind:
    """A kind of sink: the module that must be importable, and how it is opened."""

    name: str
    needs: str
    module: str

    def open(self, run: RunInfo) -> Sink:
        """Import the library and open the sink; raises any error of the library."""
        factory: Callable[[RunInfo], Sink] = importlib.import_module(self.module).open_sink
        return factory(run)


SINKS: Mapping[str, SinkKind] = {
    kind.name: kind
    for kind in (
        SinkKind("tensorboard", "tensorboard", "engine.run.sinks.tensorboard"),
        SinkKind("wandb", "wandb", "engine.run.sinks.wandb"),
        SinkKind("trackio", "trackio", "engine.run.sinks.trackio"),
    )
}
"""Every kind of sink by name, the value of --log-to."""


def check_installed(names: tuple[str, ...]) -> None:
    """Raise MissingError if the library of one of these sinks is not installed."""
    for name in names:
        if importlib.util.find_spec(SINKS[name].needs) is None:
            raise MissingError(f"--log-to {name}: not installed; run: pip install {name}")


class SinkThread:
    """Feeds one sink from a queue.

    Attributes:
        trouble: why it was turned off, in one line; "" while it works.
    """

    def __init__(self, kind: SinkKind, run: RunInfo) -> None:
        self.trouble = ""
        self._kind = kind
        self._run = run
        self._sink: Sink | None = None
        self._dropped = 0
        self._status = ""
        self._events: queue.Queue[AnyEvent | None] = queue.Queue(maxsize=_QUEUE)
        self._thread = threading.Thread(target=self._work, name=f"sink-{kind.name}", daemon=True)
        self._thread.start()

    def put(self, event: AnyEvent) -> None:
        """Queue an event; it is dropped when the queue is full, or the sink was turned off."""
        if self.trouble or not isinstance(event, _TAKEN):
            return
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Let it write what is queued, for a few seconds at most."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(timeout=_CLOSE_SECONDS)
        if self._dropped and not self.trouble:
            self.trouble = f"{self._kind.name} was too slow: {self._dropped:,} events were left out"

    def _work(self) -> None:
        try:
            while (event := self._events.get()) is not None:
                self._take(event)
        except BaseException as error:  # a library may even exit
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.trouble = f"metrics no longer go to {self._kind.name} ({why})"
        try:
            if self._sink is not None:
                self._sink.close(self._status)
        except BaseException as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.trouble = self.trouble or f"{self._kind.name} was not closed in order ({why})"

    def _take(self, event: AnyEvent) -> None:
        if isinstance(event, RunStarted) and self._sink is None:
            run = RunInfo(self._run.run_id, self._run.name, self._run.folder, event.config)
            self._sink = self._kind.open(run)
        sink = self._sink
        if sink is None:
            return
        match event:
            case RunEnded():
                self._status = event.status
            case SampleDrawn():
                sink.text(event.step, event.time, "sample", f"> {event.prompt}\n\n{event.text}")
            case _:
                values = {
                    name: value
                    for name, value in measurements(event)
                    if value is not None and math.isfinite(value)
                }
                if isinstance(event, StepDone):
                    values["tokens_seen"] = event.tokens_seen
                if values:
                    sink.log(event.step, event.time, {_metric(n): v for n, v in values.items()})


_TAKEN = (RunStarted, StepDone, EvalDone, CapabilitiesScored, SampleDrawn, RunEnded)


def _metric(name: str) -> str:
    """The metric's name in groups, as the other programs show them: `train/loss`."""
    prefix, slash, rest = name.partition("/")
    if slash:
        return f"capability/{rest}" if prefix == "able" else f"held_out/{prefix}/{rest}"
    return "held_out/bits_per_byte" if name == "bits_per_byte" else f"train/{name}"
