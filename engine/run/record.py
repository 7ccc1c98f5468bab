"""Recording a run's events: numbered and committed in batches, then sent to viewers, the state
file, the log and the printer. A file that can't be written never stops the job.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from engine.errors import GladiusError
from engine.events import (
    AnyEvent,
    HardwareRead,
    JobRequest,
    LayerStats,
    LogLine,
    Progress,
    RunEnded,
    StepDone,
    decode_event,
    encode,
    is_metric,
)
from engine.run.extras import RunExtras
from engine.run.guardian import Guardian
from engine.run.history import History
from engine.run.log import TextLog
from engine.run.runs import label_run
from engine.run.server import ControlServer
from engine.run.sinks.sink import SINKS, RunInfo, SinkThread
from engine.run.state import StateFile
from engine.small_files import BAD_JSON
from engine.workspace import Workspace

EventHandler = Callable[[AnyEvent], None]

BATCH_SECONDS = 0.1
BATCH_EVENTS = 200


_GUARDED = (
    *(("RunStarted", 50), ("PhaseStarted", 50), ("DataReady", 100), ("CheckpointSaved", 10)),
    *(("EvalDone", 200), ("StepDone", 300), ("HealthWarning", 200)),
)
"""Events that the warnings of a resumed run depend on, and how many of each are read."""
_NOT_URGENT = StepDone | LayerStats | Progress | HardwareRead | LogLine


class Recorder:
    """Records the events of one run; to be used from one thread."""

    def __init__(
        self,
        ws: Workspace,
        history: History,
        request: JobRequest,
        on_event: EventHandler | None,
    ) -> None:
        history.begin_run(request.run_id, request.job, request.config)
        known = history.run(request.run_id)
        self.seq = known.last_seq if known else 0
        """Number of the last event that was committed."""
        self.step = 0
        """The last known step, for the events of the runner itself."""
        self.attempt = 0
        self.server: ControlServer | None = None
        self._ws = ws
        self._run_id = request.run_id
        self._history = history
        self._text_log = TextLog(ws, request.job)
        self._state = StateFile(ws, request.run_id) if request.job == "train" else None
        self._printer = _Printer(on_event, self._text_log) if on_event else None
        self._batch: list[AnyEvent] = []
        self._since = 0.0
        self._urgent = False
        self._ended = False
        self._troubles: set[str] = set()
        self._guardian = Guardian() if request.job == "train" else None
        if self._guardian is not None and self.seq:
            self._guardian.replay(_past_events(history, request.run_id))
        self._sinks: list[SinkThread] = []

    def follow(self, extras: RunExtras | None) -> None:
        """Name the run, and send its metrics to other programs from now on."""
        if extras is None:
            return
        if extras.name is not None or extras.note is not None:
            try:
                label_run(self._ws, self._run_id, name=extras.name, note=extras.note)
            except GladiusError as error:
                self.log("warning", str(error))
        name = extras.name or self._run_id
        for kind in extras.log_to:
            info = RunInfo(self._run_id, name, self._ws.tmp / kind)
            self._sinks.append(SinkThread(SINKS[kind], info))

    @property
    def due(self) -> bool:
        """Whether it is time to commit: an important event, many events, or a tenth of a second."""
        late = bool(self._batch) and time.monotonic() - self._since >= BATCH_SECONDS
        return self._urgent or late or len(self._batch) >= BATCH_EVENTS

    def add(self, event: AnyEvent) -> None:
        """Add an event to the next commit; the runner's own events get time and step here."""
        if self._ended and isinstance(event, HardwareRead):
            return  # RunEnded is the last event of a run
        self._ended |= isinstance(event, RunEnded)
        if not self._batch:
            self._since = time.monotonic()
        stamp = {"time": event.time or time.time(), "step": event.step or self.step}
        self._batch.append(msgspec.structs.replace(event, **stamp))
        self._urgent |= not isinstance(event, _NOT_URGENT)

    def log(self, level: Literal["info", "warning", "error"], text: str) -> None:
        """Add a line for the log."""
        self.add(LogLine(level=level, text=text))

    def flush(self) -> list[AnyEvent]:
        """Number and commit the added events, then distribute them; returns the numbered events."""
        batch, self._batch, self._urgent = self._batch, [], False
        if not batch:
            return []
        events = self._history.append(self._run_id, self.attempt, batch)
        self.seq = events[-1].seq
        if self.server is not None:
            self.server.broadcast(self.seq, map(encode, events))
        for event in events:
            if self._state is not None:
                self._state.apply(event)
            if self._printer is not None:
                self._printer.put(event)
            self._text_log.event(event)
            for sink in self._sinks:
                sink.put(event)
            if self._guardian is not None and not self._ended:
                for warning in self._guardian.take(event):
                    self.add(warning)
        self._warn_once(self._history.trouble)
        if self._history.take_restarted():
            path = self._ws.history_file
            text = f"{path} was deleted or replaced: a new one begins with the run's recent events"
            self.log("warning", text)
        for sink in self._sinks:
            if not self._ended:
                self._warn_once(sink.trouble)
        if name := self._history.take_moved_aside():
            self.log("warning", f"the history was damaged: it is now {name}; a new one was created")
        return events

    def fill_in(self, lines: Sequence[str]) -> None:
        """Commit those of the encoded metrics that the history lacks: a machine that crashed lost
        them. They are not printed again."""
        self.flush()
        events: list[AnyEvent] = []
        for line in lines:
            with contextlib.suppress(*BAD_JSON):
                events.append(decode_event(line))
        lost = self._history.lacking(self._run_id, filter(is_metric, events))
        if not lost:
            return
        stored = self._history.append(self._run_id, self.attempt, lost)
        self.seq = stored[-1].seq
        if self.server is not None:
            self.server.broadcast(self.seq, map(encode, stored))
        steps = [event.step for event in lost]
        self.log(
            "warning",
            f"the history lacked metrics of steps {min(steps)} to {max(steps)}; they were filled "
            "in from the checkpoint",
        )

    def write_state(self) -> None:
        """Write the state file if it is time to."""
        if self._state is None:
            return
        try:
            self._state.write_if_due()
        except OSError as error:
            self._warn_once(f"{self._ws.state_file} can't be written ({error.strerror})")

    def close(self) -> None:
        """Commit the last events, and close everything."""
        self.flush()
        self.write_state()
        if self._printer is not None:
            self._printer.close()
        for sink in self._sinks:
            sink.close()
            if sink.trouble and sink.trouble not in self._troubles:
                self._text_log.line(f"warning: {sink.trouble}")
        if self._history.dropped:
            self._text_log.line(f"warning: {self._history.dropped} events are not in the history")
        self._history.close()
        if self.server is not None:
            self.server.close()

    def _warn_once(self, trouble: str) -> None:
        if trouble and trouble not in self._troubles:
            self._troubles.add(trouble)
            self.log("warning", f"{trouble}; the job continues without it")


def _past_events(history: History, run_id: str) -> list[AnyEvent]:
    """Those of a run's former events that its warnings depend on, in order."""
    events = [event for kind, limit in _GUARDED for event in history.tail(run_id, kind, limit)]
    return sorted(events, key=lambda event: event.seq)


class _Printer:
    """Calls a handler in its own thread: a blocked terminal must not block the run."""

    def __init__(self, handler: EventHandler, log: TextLog) -> None:
        self._handler = handler
        self._log = log
        self._events: queue.Queue[AnyEvent | None] = queue.Queue(maxsize=10_000)
        self._thread = threading.Thread(target=self._run, name="printer", daemon=True)
        self._thread.start()

    def put(self, event: AnyEvent) -> None:
        """Queue an event; it is dropped when the queue is full."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(event)

    def close(self) -> None:
        """Wait briefly until everything is printed."""
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._thread.join(timeout=3.0)

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                self._handler(event)
            except Exception as error:  # such as a broken pipe
                self._log.line(f"warning: printing is turned off: {error!r}")
                return
