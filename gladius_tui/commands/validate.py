"""Owns the command that validates a model and prints what was found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import MissingError, UsageError
from gladius_tui.shell import Options, command, narrate, open_screen, print_out

if TYPE_CHECKING:
    from engine.events import AnyEvent
    from engine.workspace import Workspace


@command()
@click.option("--model", metavar="DIR", help="A model's folder [the finished model].")
@click.option("--gguf", metavar="FILE", help="A GGUF file, held against the folder it lies in.")
@click.option("--checkpoint", metavar="latest|best|STEP", help="A checkpoint of this root.")
@click.option("--tasks", metavar="A,B", help="Tasks of lm-evaluation-harness, added as rows.")
@click.option("--tasks-path", metavar="DIR", help="A folder with tasks of your own.")
@click.pass_obj
def validate(
    options: Options,
    model: str | None,
    gguf: str | None,
    checkpoint: str | None,
    tasks: str | None,
    tasks_path: str | None,
) -> None:
    """Check a model: is it whole, and is it any good? Ends with 1 when it is not whole.

    The report is written beside the model (validation.json); --json prints it.
    """
    if options.wants_screen:
        open_screen(options, "validate", start=True)
    import msgspec

    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]
    if tasks is not None and not names:
        raise UsageError("--tasks names no task; give some, such as --tasks arc_easy,hellaswag")
    if tasks_path is not None and not names:
        raise UsageError("--tasks-path goes with --tasks: name the tasks to run")
    _refuse_missing(options.workspace, model, gguf, checkpoint)
    config = msgspec.json.encode(
        {
            "model": _absolute(model),
            "gguf": _absolute(gguf),
            "checkpoint": checkpoint,
            "tasks": names,
            "tasks_path": _absolute(tasks_path),
        }
    )
    _run(options, config)


def _run(options: Options, config: bytes) -> None:
    """Run the job; under --json nothing but the report goes to standard output."""
    from engine.events import LogLine, ReportDone, RunEnded
    from engine.run.runner import run_job
    from gladius_tui.headless import Printer

    printer = None if options.json else Printer(quiet=options.quiet)
    failure = report = ""

    def on_event(event: AnyEvent) -> None:
        nonlocal failure, report
        if isinstance(event, ReportDone):
            report = event.path
        if isinstance(event, RunEnded) and event.status == "failed":
            failure = event.reason or "the job failed; see tmp/logs"
        if printer is not None:
            printer(event)
        elif isinstance(event, LogLine) and event.level != "info" and not options.quiet:
            narrate(event.text)

    ws = options.workspace
    code = run_job(ws, job="validate", config=config, on_event=on_event)
    if options.json and report:
        print_out([Path(report).read_text(encoding="utf-8").rstrip()])
    if failure:
        narrate(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def _refuse_missing(
    ws: Workspace, model: str | None, gguf: str | None, checkpoint: str | None
) -> None:
    """What a look at the disk tells is said at once, before a worker loads its libraries."""
    if model is not None and not Path(model).expanduser().is_dir():
        raise MissingError(f"{model} is no folder; give the folder of a model")
    if gguf is not None and not Path(gguf).expanduser().is_file():
        raise MissingError(f"there is no file {gguf}; make one with: gladius_train export")
    from engine.checkpoint.layout import list_checkpoints

    trained = ws.model_dir.is_dir() or bool(list_checkpoints(ws.checkpoints_dir))
    if model is None and gguf is None and checkpoint is None and not trained:
        raise MissingError(
            f"there is no trained model in {ws.model_dir} and no checkpoint in "
            f"{ws.checkpoints_dir}; train one with: gladius_train train"
        )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
