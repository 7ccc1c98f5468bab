"""A recorded run for tests: its events, and writing them to a root's history."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import msgspec

from engine.events import AnyEvent, RunStarted, decode_event
from engine.run.history import History
from engine.workspace import Workspace

FILE = Path(__file__).parent / "recorded" / "demo.jsonl.gz"


def recorded() -> list[AnyEvent]:
    """All events of the recorded run, in order."""
    with gzip.open(FILE, "rb") as file:
        return [decode_event(line) for line in file]


def write_run(ws: Workspace, events: Sequence[AnyEvent], run_id: str = "") -> str:
    """Write the events to the root's history as a run; returns its id."""
    ws.create()
    first = next(event for event in events if isinstance(event, RunStarted))
    run_id = run_id or first.run_id
    history = History(ws.history_file)
    history.begin_run(run_id, "train", msgspec.json.encode(first.config))
    attempt = history.begin_attempt(run_id)
    renamed = [
        msgspec.structs.replace(event, run_id=run_id) if isinstance(event, RunStarted) else event
        for event in events
    ]
    history.append(run_id, attempt, renamed)
    history.close()
    return run_id
