"""The commands about training runs: list, name, note, compare, and export of their metrics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gladius_tui.shell import (
    EPILOG,
    Options,
    app,
    print_json,
    print_stderr,
    print_stdout,
    to_builtins,
)

if TYPE_CHECKING:
    from engine.run.runs import RunSummary


@app.group("runs", invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def runs(context: click.Context) -> None:
    """List the training runs; name, note, compare and export them.

    RUN is a run's name, its id, or the beginning of its id.
    """
    if context.invoked_subcommand is not None:
        return
    from engine.run.runs import list_runs

    options: Options = context.obj
    found = list_runs(options.workspace)
    if options.json:
        print_json([to_builtins(run) for run in found])
    elif found:
        print_stdout(run_table(found))
    else:
        print_stderr(f"no run in {options.workspace.root}; start one with: gladius_train train")


@runs.command(epilog=EPILOG)
@click.argument("run")
@click.argument("name")
@click.pass_obj
def rename(options: Options, run: str, name: str) -> None:
    """Give a run a name. Its files and its id stay as they are."""
    from engine.run.runs import find_run, label_run

    found = find_run(options.workspace, run)
    label_run(options.workspace, found.run_id, name=name)
    _print_changed(options, found.run_id)


@runs.command(epilog=EPILOG)
@click.argument("run")
@click.argument("text")
@click.pass_obj
def note(options: Options, run: str, text: str) -> None:
    """Write a note to a run; an empty text removes it."""
    from engine.run.runs import find_run, label_run

    found = find_run(options.workspace, run)
    label_run(options.workspace, found.run_id, note=text)
    _print_changed(options, found.run_id)


@runs.command(epilog=EPILOG)
@click.argument("one", metavar="RUN")
@click.argument("other", metavar="RUN")
@click.pass_obj
def diff(options: Options, one: str, other: str) -> None:
    """Compare the configs of two runs: the fields that differ."""
    from engine.run.runs import config_difference, find_run, run_config

    ws = options.workspace
    left, right = find_run(ws, one), find_run(ws, other)
    changes = config_difference(run_config(ws, left.run_id), run_config(ws, right.run_id))
    if options.json:
        print_json({name: [a, b] for name, a, b in changes})
    elif changes:
        rows = [(name, str(a), str(b)) for name, a, b in changes]
        print_stdout(_table([("field", left.title, right.title), *rows]))
    else:
        print_stderr("the configs are equal")


@runs.command(epilog=EPILOG)
@click.argument("run")
@click.argument("file", metavar="FILE.csv|.parquet")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.pass_obj
def export(options: Options, run: str, file: str, force: bool) -> None:
    """Write every metric of a run to a file: a row for each step, a column for each metric."""
    from engine.run.metrics_table import export_metrics
    from engine.run.runs import find_run

    ws = options.workspace
    found = find_run(ws, run)
    path = Path(file).expanduser()
    rows = export_metrics(ws, found.run_id, path, force=force)
    if options.json:
        print_json({"path": str(path), "rows": rows})
    else:
        print_stdout([f"{file} written: {rows:,} steps"])


def run_table(found: list[RunSummary]) -> list[str]:
    """The runs as a table, the newest first; the id stands where a run has no name."""
    rows = [("run", "date", "preset", "steps", "best", "state", "note")]
    for run in found:
        rows.append(
            (
                run.title,
                time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started)),
                run.preset,
                f"{run.steps:,}",
                "–" if run.best_bits is None else f"{run.best_bits:.3f}",
                run.status,
                run.note,
            )
        )
    return _table(rows, right=(3, 4))


def _table(rows: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]

    def cell(text: str, column: int) -> str:
        width = widths[column]
        return text.rjust(width) if column in right else text.ljust(width)

    return ["  ".join(cell(text, n) for n, text in enumerate(row)).rstrip() for row in rows]


def _print_changed(options: Options, run_id: str) -> None:
    from engine.run.runs import find_run

    run = find_run(options.workspace, run_id)
    if options.json:
        print_json(to_builtins(run))
    else:
        note = f": {run.note}" if run.note else ""
        print_stdout([f"run {run.run_id} is called {run.title!r}{note}"])
