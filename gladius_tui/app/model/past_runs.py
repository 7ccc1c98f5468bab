"""Read runs from the history: a run's view, its curves, its events, and the list of runs.

Call these in a thread: they take milliseconds, however long the run is.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.events import AnyEvent, Job, RunStarted
from engine.run.history import History
from engine.run.rollup import Column
from engine.run.view import LOG_LINES, LOGGED, READINGS, RunView
from engine.workspace import Workspace

_NEWEST = (
    *("RunStarted", "PhaseStarted", "StepDone", "SampleDrawn", "CapabilitiesScored"),
    *("RunPaused", "RunResumed", "LayerStats"),
)
_MOST_PROBES = 64
_MOST_SCORED = 3000
"""Capability scores: those of a run of a million steps, and the experts', which come first."""
_PAGE = 2000


def read_run_view(ws: Workspace, run_id: str = "", up_to: int | None = None) -> RunView | None:
    """A run ("": the newest training run) folded from its events up to number `up_to`.

    Only the newest events of each kind are read, so a run of a million steps opens as fast as one
    of a thousand. None if there is no such run.
    """
    history = History(ws.history_file)
    try:
        record = history.run(run_id) if run_id else history.last_run("train")
        if record is None:
            return None
        return fold_run(history, record.run_id, record.last_seq if up_to is None else up_to)
    finally:
        history.close()


def fold_run(history: History, run_id: str, up_to: int) -> RunView:
    """A run folded from its newest events of each kind; see `read_run_view`."""
    run = RunView(run_id=run_id)
    events: dict[int, AnyEvent] = {}

    def add(kind: str, limit: int) -> None:
        events.update((event.seq, event) for event in history.tail(run_id, kind, limit, up_to))

    for kind in _NEWEST:
        add(kind, 1)
    for kind in LOGGED:
        # Other kinds are limited: many evaluations and checkpoints would fill the log.
        add(kind, LOG_LINES if kind in ("LogLine", "GuardTripped") else 100)
    add("HardwareRead", READINGS)
    add("Progress", 50)
    add("ProbeRead", _MOST_PROBES)
    add("CapabilitiesScored", _MOST_SCORED)
    run.take(events[seq] for seq in sorted(events))
    run.seq = up_to
    last = (run.step or 0) + 1
    for row in run.experts.values():
        row.best_kl = _least(history.series(run_id, f"kl/{row.name}", 0, last, 2))
    run.best_bits = _least(history.series(run_id, "bits_per_byte", 0, last, 2))
    for name in run.best_capabilities:
        highs = [c.high for c in history.series(run_id, f"able/{name}", 0, last, 2)]
        known = run.best_capabilities[name]
        run.best_capabilities[name] = max([known, *(high for high in highs if high is not None)])
    return run


def read_last_run(ws: Workspace, job: Job) -> tuple[str, list[AnyEvent]] | None:
    """Id and events of a job's last run; None if there is none. For jobs with few events."""
    history = History(ws.history_file)
    try:
        record = history.last_run(job)
        if record is None:
            return None
        events: list[AnyEvent] = []
        while page := history.events(record.run_id, events[-1].seq if events else 0, _PAGE):
            events += page
        return record.run_id, events
    finally:
        history.close()


def _least(columns: Sequence[Column]) -> float | None:
    return min((c.low for c in columns if c.low is not None), default=None)


def read_curves(
    ws: Workspace, run_id: str, metrics: Sequence[str], lo: int, hi: int, columns: int
) -> dict[str, list[Column]]:
    """The metrics over the steps lo <= step < hi, each in at most `columns` columns."""
    history = History(ws.history_file)
    try:
        return {m: history.series(run_id, m, lo, hi, columns) for m in metrics}
    finally:
        history.close()


def last_step(ws: Workspace, run_id: str) -> int:
    """The newest step of a run; 0 where it has none."""
    history = History(ws.history_file)
    try:
        event = history.last(run_id, "StepDone")
        return 0 if event is None else event.step
    finally:
        history.close()


def read_metrics(ws: Workspace, run_id: str) -> list[str]:
    """The names of a run's series."""
    history = History(ws.history_file)
    try:
        return history.metrics(run_id)
    finally:
        history.close()


def former_runs(ws: Workspace, current: str, limit: int = 12) -> list[tuple[str, str, float]]:
    """(run id, preset, Unix time of its start) of the newest training runs, without `current`."""
    history = History(ws.history_file)
    try:
        found = []
        for record in history.runs("train", limit + 1):
            first = history.tail(record.run_id, "RunStarted", 1)
            preset = first[0].preset if first and isinstance(first[0], RunStarted) else ""
            if record.run_id != current:
                found.append((record.run_id, preset, record.started))
        return found[:limit]
    finally:
        history.close()
