"""What all commands share: global options, output streams, running a job, commanding a running job.

Modules are imported inside functions, so that `status` and `--help` answer at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from engine.errors import MissingError, UsageError
from engine.workspace import Workspace
from gladius_tui import __version__

if TYPE_CHECKING:
    from engine.events import AnyCommand, AnyEvent, Job
    from engine.run.extras import RunExtras

JOB_NAMES = ("train", "download", "export", "validate", "data", "ask")
"""Jobs of `engine.run.job.JOBS` that commands act on; importing the table would slow `--help`."""
EPILOG = "Also, before or after the command: --root DIR --no-ui --json --quiet --debug."

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something required is missing, 75 another run "
    "holds the lock, 130 ended by Ctrl+C, 143 by SIGTERM (both with a checkpoint)."
)


@dataclass(frozen=True)
class Options:
    """The global options of a command."""

    root: str | None = None
    no_ui: bool = False
    json: bool = False
    quiet: bool = False
    command_words: tuple[str, ...] = ()
    """The command with its own options, as typed."""

    @property
    def workspace(self) -> Workspace:
        """The workspace of `--root`."""
        return Workspace.find(self.root)

    @property
    def use_screen(self) -> bool:
        """Whether to open the app: in a terminal, unless an option asks for printed output."""
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

        print_stdout(install_completion(app))
        context.exit()


@click.group(
    invoke_without_command=True,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["--help", "-h"]},
)
@click.option("--root", metavar="DIR", help="Folder of tmp/ and models/ [GLADIUS_ROOT, else .].")
@click.option("--no-ui", is_flag=True, help="Print lines instead of opening a screen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the outcome.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--install-completion",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_install_completion,
    help="Install completion of commands and options for your shell.",
)
@click.version_option(__version__, message="gladius %(version)s")
@click.pass_context
def app(
    context: click.Context, root: str | None, no_ui: bool, as_json: bool, quiet: bool, debug: bool
) -> None:
    """Distil several expert language models into one small student."""
    options = context.obj = Options(
        root=root, no_ui=no_ui, json=as_json, quiet=quiet, command_words=context.obj or ()
    )
    if context.invoked_subcommand is not None:
        return
    if options.use_screen:
        open_screen(options)
    else:
        print_stdout([context.get_help()])


command = functools.partial(app.command, epilog=EPILOG)
job_option = click.option(
    "--job", type=click.Choice(JOB_NAMES), help="The job to act on, if several are running."
)


def open_screen(options: Options, mode: str = "", *, start: bool = False) -> NoReturn:
    """Open the app at a mode ("": the app chooses) and end with its exit code.

    With `start`, the typed command is launched as a process of its own.
    """
    from gladius_tui.app.app import run_app

    launch = options.command_words if start else ()
    raise click.exceptions.Exit(run_app(options.workspace, mode, launch, app.commands))


def run_in_foreground(
    options: Options,
    ws: Workspace,
    *,
    job: Job,
    config: bytes,
    resume: bool = False,
    fresh: bool = False,
    extras: RunExtras | None = None,
    run_id: str = "",
) -> None:
    """Run a job in this process, print its events, and end with its exit code."""
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

    code = run_job(
        ws,
        job=job,
        config=config,
        run_id=run_id or None,
        resume=resume,
        fresh=fresh,
        on_event=on_event,
        extras=extras,
    )
    if failure:
        print_stderr(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def send_command(options: Options, ws: Workspace, command: AnyCommand, job: Job | None) -> None:
    """Send `command` to the running job and print its acknowledgement."""
    from engine.events import describe, encode
    from engine.run.control import attach

    selected = select_job(ws, job)
    if selected is None:
        raise MissingError("no job is running here; start one with: gladius_train train")
    with attach(ws, selected) as attachment:
        event = attachment.send(command)
    print_stdout([encode(event).decode() if options.json else describe(event) or ""])


def select_job(ws: Workspace, job: Job | None) -> Job | None:
    """The named job, else the only running one; None if no job is running.

    Raises:
        UsageError: several jobs are running and none is named.
    """
    from engine.run.control import running_jobs

    if job is not None:
        return job
    running = running_jobs(ws)
    if len(running) > 1:
        raise UsageError(f"{' and '.join(running)} are running here; name one with --job")
    return running[0] if running else None


def to_builtins(struct: Any) -> dict[str, Any]:
    """The struct as a dict of plain data, for JSON."""
    import msgspec

    return msgspec.to_builtins(struct)


def print_json(value: Any) -> None:
    """Print data as JSON on standard output."""
    import msgspec

    from engine.foreign_text import shown_values

    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:  # names that are not UTF-8
        data = msgspec.json.encode(shown_values(msgspec.to_builtins(value)))
    print_stdout([msgspec.json.format(data, indent=2).decode()])


def print_stdout(lines: Iterable[str]) -> None:
    """Print lines on standard output: data and results."""
    from gladius_tui.terminal import print_lines

    print_lines(lines)


def print_stderr(text: str) -> None:
    """Print a line on standard error: errors, notes and progress."""
    from gladius_tui.terminal import print_lines

    print_lines([text], sys.stderr)
