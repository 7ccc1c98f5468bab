"""`history_open_s`: seconds to read a run of 1,000,000 steps from its history and draw all charts.

The detail has the same for a run of 1,000 steps.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import msgspec

from benchmarks.timing import Figure, narrate
from engine.events import (
    STUDENT,
    CapabilitiesScored,
    CapabilityScore,
    CheckpointSaved,
    EvalDone,
    ExpertScore,
    ExpertShare,
    HardwareRead,
    PhasePlan,
    PhaseStarted,
    RunStarted,
    SampleDrawn,
    StepDone,
    encode,
)
from engine.run import rollup
from engine.run.history import History
from engine.workspace import Workspace
from gladius_tui.app.model.curves import Curve
from gladius_tui.app.model.past_runs import read_curves, read_metrics, read_run_view

BOUND = 0.5
REPETITIONS = 7
EVERY = 500
"""Steps between two evaluations, as in the preset 1b."""
EXPERTS = ("qwen", "llama", "phi", "tinyllama")
CAPABILITIES = ("tool_calling", "json", "reasoning", "math")
COLUMNS = 120


def measure(folder: Path) -> dict[str, Figure]:
    """`folder` is for the histories, about a gigabyte."""
    medians = {}
    for steps in (1_000, 1_000_000):
        ws = Workspace.find(folder / f"history-{steps}")
        ws.create()
        narrate(f"writing a history of {steps:,} steps")
        run_id = write_history(ws, steps)
        seconds = [_open(ws, run_id, steps) for _ in range(REPETITIONS)]
        medians[steps] = (statistics.median(seconds), min(seconds), max(seconds))
    long, short = medians[1_000_000], medians[1_000]
    detail = {"min": long[1], "max": long[2], "count": REPETITIONS, "of_1000_steps": short[0]}
    return {"history_open_s": Figure(long[0], BOUND, detail)}


def _open(ws: Workspace, run_id: str, steps: int) -> float:
    from textual.geometry import Size

    from gladius_tui.app.model.drawing import Drawing, Panel, Series
    from gladius_tui.app.widgets.chart_sketch import Palette, sketch

    started = time.perf_counter()
    run = read_run_view(ws, run_id)
    assert run is not None and run.step == steps
    metrics = read_metrics(ws, run_id)
    columns = read_curves(ws, run_id, metrics, 0, steps + 1, COLUMNS)
    colours = [(90, 160, 250)] * 5
    palette = Palette(colours, colours, (255, 255, 255), (0, 0, 0))
    for metric in metrics:
        panel = Panel(metric, metric, [Series(Curve(metric, columns[metric]))])
        drawing = Drawing([panel], 0, steps + 1, smoothing=0.98)
        assert "no value" not in sketch(drawing, Size(COLUMNS, 20), palette).text
    return time.perf_counter() - started


def write_history(ws: Workspace, steps: int) -> str:
    """Write a history as the runner of a run would; the steps in SQL, for speed."""
    history = History(ws.history_file)
    history.begin_run("long", "train", b"{}")
    attempt = history.begin_attempt("long")
    shares = tuple(ExpertShare(name=n, title=n.title(), share=0.25) for n in EXPERTS)
    plan = tuple(
        PhasePlan(index=n, name=name, expert=name) for n, name in enumerate(EXPERTS, start=1)
    )
    history.append(
        "long",
        attempt,
        [
            RunStarted(
                run_id="long",
                job="train",
                attempt=1,
                pid=1,
                preset="1b",
                max_steps=steps,
                phases=plan,
                experts=shares,
            ),
            PhaseStarted(phase=1, phases=6, name="qwen", expert="qwen"),
            _step(0),
            _evaluation(0),
        ],
    )
    history.close()
    _write_steps(ws, steps)
    history = History(ws.history_file)
    history.begin_run("long", "train", b"{}")
    for first in range(EVERY, steps + 1, EVERY * 20):
        events = []
        for step in range(first, min(first + EVERY * 20, steps + 1), EVERY):
            events += [
                _evaluation(step),
                CapabilitiesScored(
                    who=STUDENT,
                    step=step,
                    scores=tuple(
                        CapabilityScore(capability=name, right=step % 16, asked=16)
                        for name in CAPABILITIES
                    ),
                ),
                SampleDrawn(step=step, prompt="Explain the sky.", text="It is blue. " * 20),
                CheckpointSaved(step=step, path=f"step-{step:09d}", bytes=1 << 30, seconds=9.0),
                HardwareRead(step=step, cpu_percent=50.0, ram_used=1 << 34, ram_total=1 << 36),
            ]
        history.append("long", attempt, events)
    history.close()
    return "long"


def _step(step: int) -> StepDone:
    return StepDone(
        step=step,
        phase=1,
        loss=3.0,
        kl=2.0,
        ce=4.0,
        lr=1e-3,
        tokens=32768,
        grad_norm=1.0,
        tokens_seen=step * 32768,
        tokens_per_sec=38_000.0,
        step_seconds=0.9,
    )


def _evaluation(step: int) -> EvalDone:
    fall = 1.0 / (1 + step / 1000)
    scores = tuple(
        ExpertScore(
            expert=name, bits_per_byte=1 + fall, kl=1 + fall, agreement=0.5, positions=10_000
        )
        for name in EXPERTS
    )
    return EvalDone(step=step, bits_per_byte=1 + fall, scores=scores)


def _write_steps(ws: Workspace, steps: int) -> None:
    """Write StepDone events 1 to `steps`, with points and roll-ups; SQLite generates the noise."""
    import sqlite3

    db = sqlite3.connect(ws.history_file, isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    body = encode(msgspec.structs.replace(_step(-1), seq=-2)).decode()
    body = body.replace('"seq":-2', '"seq":#seq').replace('"step":-1', '"step":#step')
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    db.execute("BEGIN")
    db.execute(
        f"{numbers} INSERT INTO events SELECT 1, i + 10, 1, i, 'StepDone',"
        " replace(replace(?, '#seq', i + 10), '#step', i) FROM n",
        (steps, body),
    )
    for metric in rollup.STEP_METRICS:
        (series,) = db.execute("SELECT id FROM series WHERE metric = ?", (metric,)).fetchone()
        db.execute(
            f"{numbers} INSERT INTO points SELECT ?, i,"
            " 2.0 + 8.0 / (1.0 + i / 500.0) + abs(random() % 1000) / 2000.0 FROM n",
            (steps, series),
        )
        for level in range(1, rollup.LEVELS + 1):
            db.execute(
                "INSERT OR REPLACE INTO rollups SELECT series, ?, step / ?, min(value), max(value),"
                " count(value), total(value) FROM points WHERE series = ? GROUP BY step / ?",
                (level, 64**level, series, 64**level),
            )
    db.execute("COMMIT")
    db.close()
