"""The command `validate`: check a model and print a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import MissingError, UsageError
from gladius_tui.commands.run_options import split_names
from gladius_tui.shell import Options, command, open_screen, print_stderr, print_stdout

if TYPE_CHECKING:
    from engine.events import AnyEvent
    from engine.workspace import Workspace


@command()
@click.option("--model", metavar="DIR", help="Folder of the model [the finished model].")
@click.option("--gguf", metavar="FILE", help="A GGUF file, compared with the folder it is in.")
@click.option("--checkpoint", metavar="latest|best|STEP", help="A checkpoint of this root.")
@click.option("--tasks", metavar="A,B", help="Also run these lm-evaluation-harness tasks.")
@click.option("--tasks-path", metavar="DIR", help="A folder with your own tasks.")
@click.pass_obj
def validate(
    options: Options,
    model: str | None,
    gguf: str | None,
    checkpoint: str | None,
    tasks: str | None,
    tasks_path: str | None,
) -> None:
    """Check a model's structure and measure its quality. Exits with 1 if the structure is broken.

    The report is written next to the model (validation.json); --json prints it.
    """
    if options.use_screen:
        open_screen(options, "validate", start=True)
    import msgspec

    names = split_names(tasks) or []
    if tasks is not None and not names:
        raise UsageError("--tasks is empty; name tasks, such as --tasks arc_easy,hellaswag")
    if tasks_path is not None and not names:
        raise UsageError("--tasks-path needs --tasks: name the tasks to run")
    _check_paths(options.workspace, model, gguf, checkpoint)
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
    """Run the job; with --json only the report goes to standard output."""
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
            print_stderr(event.text)

    from engine.small_files import read_text

    ws = options.workspace
    code = run_job(ws, job="validate", config=config, on_event=on_event)
    if options.json and report:
        print_stdout([read_text(Path(report)).rstrip()])
    if failure:
        print_stderr(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def _check_paths(
    ws: Workspace, model: str | None, gguf: str | None, checkpoint: str | None
) -> None:
    """Report missing files at once, before a worker spends time loading its libraries."""
    if model is not None and not Path(model).expanduser().is_dir():
        raise MissingError(f"{model} is not a folder; give the folder of a model")
    if gguf is not None and not Path(gguf).expanduser().is_file():
        raise MissingError(f"no such file: {gguf}; create one with: gladius_train export")
    if gguf is not None:
        from engine.gguf_types import refuse_other_file

        refuse_other_file(Path(gguf).expanduser())
    from engine.checkpoint.layout import list_checkpoints

    trained = ws.model_dir.is_dir() or bool(list_checkpoints(ws.checkpoints_dir))
    if model is None and gguf is None and checkpoint is None and not trained:
        raise MissingError(
            f"no trained model in {ws.model_dir} and no checkpoint in {ws.checkpoints_dir}; "
            "train one with: gladius_train train"
        )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
