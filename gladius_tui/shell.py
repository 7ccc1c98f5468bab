"""Owns what all commands share: the group with its global options, what goes to which stream, and
the two things most commands do, running a job here and asking one that runs.

Imports stand inside the functions: `status` and `--help` must answer at once.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from engine.errors import MissingError, UsageError
from engine.workspace import Workspace
from gladius_tui import __version__

if TYPE_CHECKING:
    from engine.events import AnyCommand, AnyEvent, Job

JOBS = ("train", "download", "export", "validate", "data")
EPILOG = "Also, before or after the command: --root DIR --no-ui --json --quiet --debug."

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something required is missing, 75 another run "
    "holds the lock, 130 ended by Ctrl+C, 143 by SIGTERM (both with a checkpoint)."
)


@dataclass(frozen=True)
class Options:
    """The options that every command knows."""

    root: str | None = None
    no_ui: bool = False
    json: bool = False
    quiet: bool = False
    words: tuple[str, ...] = ()
    """The command with its own options, as typed."""

    @property
    def workspace(self) -> Workspace:
        return Workspace.find(self.root)

    @property
    def wants_screen(self) -> bool:
        """Whether a screen may be opened: nobody asked for lines, and a person sits there."""
        if self.no_ui or self.json or self.quiet:
            return False
        import os

        if os.environ.get("TERM") in ("dumb", "unknown"):
            return False
        # Textual draws on standard error.
        return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _install_completion(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from gladius_tui.completion import install_completion

        print_out(install_completion(app))
        context.exit()


@click.group(
    invoke_without_command=True,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["--help", "-h"]},
)
@click.option("--root", metavar="DIR", help="Where tmp/ and models/ lie [GLADIUS_ROOT, else .].")
@click.option("--no-ui", is_flag=True, help="Print lines, open no screen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the outcome.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--install-completion",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_install_completion,
    help="Let the shell complete commands and options.",
)
@click.version_option(__version__, message="gladius %(version)s")
@click.pass_context
def app(
    context: click.Context, root: str | None, no_ui: bool, as_json: bool, quiet: bool, debug: bool
) -> None:
    """Distil several expert language models into one small student."""
    words = context.obj or ()
    options = context.obj = Options(root=root, no_ui=no_ui, json=as_json, quiet=quiet, words=words)
    if context.invoked_subcommand is not None:
        return
    if options.wants_screen:
        open_screen(options)
    else:
        print_out([context.get_help()])


command = functools.partial(app.command, epilog=EPILOG)
job_option = click.option("--job", type=click.Choice(JOBS), help="Which job, when two run.")


def open_screen(options: Options, mode: str = "", *, start: bool = False) -> NoReturn:
    """Open the app at a mode ("": where it makes sense) and end with its exit code.

    With `start` the command that was typed is started, as a process of its own.
    """
    from gladius_tui.app.app import run_app

    launch = options.words if start else ()
    raise click.exceptions.Exit(run_app(options.workspace, mode, launch))


def run_here(
    options: Options,
    ws: Workspace,
    *,
    job: Job,
    config: bytes,
    resume: bool = False,
    fresh: bool = False,
) -> None:
    """Run a job in the foreground, printing its events, and end with its exit code."""
    from engine.events import RunEnded
    from engine.run.runner import run_job
    from gladius_tui.headless import Printer

    printer = Printer(as_json=options.json, quiet=options.quiet)
    failure = ""

    def on_event(event: AnyEvent) -> None:
        nonlocal failure
        if isinstance(event, RunEnded) and event.status == "failed":
            failure = event.reason or "the job failed; see tmp/logs"
        printer(event)

    code = run_job(ws, job=job, config=config, resume=resume, fresh=fresh, on_event=on_event)
    if failure:
        narrate(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def send(options: Options, ws: Workspace, command: AnyCommand, job: Job | None) -> None:
    """Ask the running job for `command`, and print its acknowledgement."""
    from engine.events import describe, encode
    from engine.run.control import attach

    chosen = chosen_job(ws, job)
    if chosen is None:
        raise MissingError("no job runs here; start one with: gladius_train train")
    with attach(ws, chosen) as attachment:
        event = attachment.send(command)
    print_out([encode(event).decode() if options.json else describe(event) or ""])


def chosen_job(ws: Workspace, job: Job | None) -> Job | None:
    """The job that is meant: the named one, else the one that runs; None when none does."""
    from engine.run.control import running_jobs

    if job is not None:
        return job
    running = running_jobs(ws)
    if len(running) > 1:
        raise UsageError(f"{' and '.join(running)} run here; say which with --job")
    return running[0] if running else None


def plain(struct: Any) -> dict[str, Any]:
    """The struct as plain data, for JSON."""
    import msgspec

    return msgspec.to_builtins(struct)


def print_json(value: Any) -> None:
    """Print data as JSON on standard output."""
    import msgspec

    print_out([msgspec.json.format(msgspec.json.encode(value), indent=2).decode()])


def print_out(lines: Any) -> None:
    """Print lines on standard output."""
    from gladius_tui.headless import print_lines

    print_lines(lines)


def narrate(text: str) -> None:
    """Print a line on standard error."""
    from gladius_tui.headless import print_lines

    print_lines([text], sys.stderr)
