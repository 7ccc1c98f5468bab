"""Owns what the Dashboard reads out of the history: a run's board as it stands, its curves, and
which runs there were. For threads: it may take milliseconds, whatever the run's length.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.events import AnyEvent, RunStarted
from engine.run.history import History
from engine.run.rollup import Column
from engine.run.view import LOG_LINES, LOGGED, READINGS, RunView
from engine.workspace import Workspace

_NEWEST = (
    *("RunStarted", "PhaseStarted", "StepDone", "SampleDrawn", "CapabilitiesScored"),
    *("RunPaused", "RunResumed"),
)
_MOST_PROBES = 64
_MOST_SCORED = 3000
"""Rows of the capability table: those of a million steps, and the experts', which come first."""


def read_run_view(ws: Workspace, run_id: str = "", up_to: int | None = None) -> RunView | None:
    """The board of a run ("": the newest training run) as its events up to `up_to` tell it.

    Only the newest of each kind are read, so a run of a million steps opens as one of a thousand.
    None where there is no such run.
    """
    history = History(ws.history_file)
    try:
        record = history.run(run_id) if run_id else history.last_run("train")
        if record is None:
            return None
        return board_of(history, record.run_id, record.last_seq if up_to is None else up_to)
    finally:
        history.close()


def board_of(history: History, run_id: str, up_to: int) -> RunView:
    """See `read_run_view`."""
    board = RunView(run_id=run_id)
    events: dict[int, AnyEvent] = {}

    def add(kind: str, limit: int) -> None:
        events.update((event.seq, event) for event in history.tail(run_id, kind, limit, up_to))

    for kind in _NEWEST:
        add(kind, 1)
    for kind in LOGGED:
        # One evaluation or checkpoint after the other would fill the log: they are many, and new.
        add(kind, LOG_LINES if kind in ("LogLine", "GuardTripped") else 100)
    add("HardwareRead", READINGS)
    add("Progress", 50)
    add("ProbeRead", _MOST_PROBES)
    add("CapabilitiesScored", _MOST_SCORED)
    board.take(events[seq] for seq in sorted(events))
    board.seq = up_to
    last = (board.step or 0) + 1
    for row in board.experts.values():
        row.best_kl = _least(history.series(run_id, f"kl/{row.name}", 0, last, 2))
    board.best_bits = _least(history.series(run_id, "bits_per_byte", 0, last, 2))
    for name in board.best_capabilities:
        most = [c.high for c in history.series(run_id, f"able/{name}", 0, last, 2)]
        known = board.best_capabilities[name]
        board.best_capabilities[name] = max([known, *(m for m in most if m is not None)])
    return board


def _least(columns: Sequence[Column]) -> float | None:
    return min((c.low for c in columns if c.low is not None), default=None)


def read_curves(
    ws: Workspace, run_id: str, metrics: Sequence[str], lo: int, hi: int, columns: int
) -> dict[str, list[Column]]:
    """The metrics over lo <= step < hi, each in at most `columns` columns."""
    history = History(ws.history_file)
    try:
        return {m: history.series(run_id, m, lo, hi, columns) for m in metrics}
    finally:
        history.close()


def read_metrics(ws: Workspace, run_id: str) -> list[str]:
    """The names of a run's series."""
    history = History(ws.history_file)
    try:
        return history.metrics(run_id)
    finally:
        history.close()


def former_runs(ws: Workspace, besides: str, limit: int = 12) -> list[tuple[str, str, float]]:
    """(run id, preset, Unix time of its start) of the newest training runs but one."""
    history = History(ws.history_file)
    try:
        found = []
        for record in history.runs("train", limit + 1):
            first = history.tail(record.run_id, "RunStarted", 1)
            preset = first[0].preset if first and isinstance(first[0], RunStarted) else ""
            if record.run_id != besides:
                found.append((record.run_id, preset, record.started))
        return found[:limit]
    finally:
        history.close()
