"""Owns the commands: their options, what they print where, and exit codes. What a command does is
the engine's.

Imports stand inside the commands: `status` and `--help` must answer at once.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from engine.errors import ExitCode, GladiusError, MissingError, UsageError
from engine.workspace import CLEANABLE, CLEANED_BY_DEFAULT, Workspace
from gladius_tui import __version__

if TYPE_CHECKING:
    from engine.preflight import Launch
    from engine.run.events import AnyCommand, AnyEvent, Job

JOBS = ("train", "download", "export", "validate")
_FLAGS = frozenset({"--no-ui", "--json", "--quiet", "-q", "--version", "--debug"})
_EPILOG = "Also, before or after the command: --root DIR --no-ui --json --quiet --debug."

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something required is missing, 75 another run "
    "holds the lock, 130 ended by Ctrl+C, 143 by SIGTERM (both with a checkpoint)."
)


@dataclass(frozen=True)
class Options:
    """The options that every command knows."""

    root: str | None = None
    json: bool = False
    quiet: bool = False

    @property
    def workspace(self) -> Workspace:
        return Workspace.find(self.root)


def _install_completion(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from gladius_tui.completion import install_completion

        _print(install_completion(app))
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
    context.obj = Options(root=root, json=as_json, quiet=quiet)
    if context.invoked_subcommand is None:
        _print([context.get_help()])


_command = functools.partial(app.command, epilog=_EPILOG)
_overrides = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field: section.field=value (repeatable).",
)
_job = click.option("--job", type=click.Choice(JOBS), help="Which job, when two run.")


@_command()
@click.pass_obj
def status(options: Options) -> None:
    """Show where the training run stands."""
    from engine.experts.registry import expert_status, load_experts
    from engine.run.state import read_state

    ws = options.workspace
    state = read_state(ws)
    experts = {name: expert_status(ws, spec) for name, spec in load_experts(ws).items()}
    if options.json:
        _print_json({**_plain(state), "root": str(ws.root), "experts": list(experts.values())})
        return
    from gladius_tui.report import status_lines

    _print(status_lines(state, experts))


@_command()
@click.pass_obj
def models(options: Options) -> None:
    """List the experts and what of them lies here."""
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    if options.json:
        _print_json([_plain(spec) | _plain(statuses[name]) for name, spec in specs.items()])
        return
    from gladius_tui.report import models_lines

    _print(models_lines(list(specs.values()), statuses))


@_command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="The optional experts too.")
@click.option("--force", is_flag=True, help="Again, even what is ready.")
@click.pass_obj
def download(options: Options, names: tuple[str, ...], every: bool, force: bool) -> None:
    """Fetch experts; without names, the required ones."""
    import msgspec

    from engine.experts.registry import load_experts
    from engine.structs import nearest

    ws = options.workspace
    experts = load_experts(ws)
    for name in names:
        if name not in experts:
            raise UsageError(f"unknown expert {name!r}; {nearest(name, experts)}")
    wanted = list(dict.fromkeys(names))
    if every:
        wanted = [s.name for s in experts.values() if s.source in ("hub", "wheel")]
    elif not wanted:
        wanted = [spec.name for spec in experts.values() if spec.required]
    config = msgspec.json.encode({"names": wanted, "force": force})
    _run(options, ws, job="download", config=config)


@_command()
@click.option("--preset", metavar="NAME", help="A config that ships: 1b, nano, demo.")
@click.option("--config", metavar="FILE", help="TOML laid over the preset.")
@click.option("--experts", metavar="A,B", help="Experts, in the order of their phases.")
@click.option("--hours", type=float, help="Training time of the whole run, save included.")
@click.option(
    "--data", metavar="FILE", multiple=True, help="JSON Lines to learn from (repeatable)."
)
@click.option("--fresh", is_flag=True, help="Begin anew; a former run is kept aside.")
@_overrides
@click.pass_obj
def train(
    options: Options,
    preset: str | None,
    config: str | None,
    experts: str | None,
    hours: float | None,
    data: tuple[str, ...],
    fresh: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the student; an unfinished run of the same config goes on."""
    from engine.config import load_config
    from engine.preflight import launch_training

    ws = options.workspace
    ws.create()
    run_config = load_config(
        ws,
        preset=preset,
        file=config,
        overrides=overrides,
        experts=None if experts is None else [n.strip() for n in experts.split(",") if n.strip()],
        data=data,
        hours=hours,
    )
    _train(options, ws, launch_training(ws, run_config, fresh=fresh))


@_command()
@click.option("--hours", type=float, help="Training time of the whole run, what is done included.")
@_overrides
@click.pass_obj
def resume(options: Options, hours: float | None, overrides: tuple[str, ...]) -> None:
    """Go on: a paused run at once, an ended one from its last checkpoint."""
    from engine.preflight import launch_resume
    from engine.run.control import running_jobs
    from engine.run.events import Resume
    from engine.run.state import read_state

    ws = options.workspace
    if "train" in running_jobs(ws) and read_state(ws).status == "paused":
        if hours is not None or overrides:
            raise UsageError("a paused run keeps its config; stop it first: gladius_train stop")
        _send(options, ws, Resume(), "train")
        return
    _train(options, ws, launch_resume(ws, overrides, hours))


@_command()
@_job
@click.pass_obj
def pause(options: Options, job: Job | None) -> None:
    """Let the running job stand still after its current step."""
    from engine.run.events import Pause

    _send(options, options.workspace, Pause(), job)


@_command()
@_job
@click.pass_obj
def checkpoint(options: Options, job: Job | None) -> None:
    """Let the running job save a checkpoint after its current step."""
    from engine.run.events import Checkpoint

    _send(options, options.workspace, Checkpoint(), job)


@_command()
@click.option("--finish", is_flag=True, help="Decay the learning rate and save the model first.")
@_job
@click.pass_obj
def stop(options: Options, finish: bool, job: Job | None) -> None:
    """End the running job with a checkpoint."""
    from engine.run.events import Stop

    _send(options, options.workspace, Stop(finish=finish), job)


@_command()
@click.option("--follow", "-f", is_flag=True, help="Print the run's events until it ends.")
@_job
@click.pass_context
def dashboard(context: click.Context, follow: bool, job: Job | None) -> None:
    """Show the running job, or the last one."""
    options: Options = context.obj
    ws = options.workspace
    if follow:
        from gladius_tui.follow import follow_job

        follow_job(ws, _chosen_job(ws, job) or "train", as_json=options.json, quiet=options.quiet)
    elif options.json:
        context.invoke(status)
    else:
        from gladius_tui.follow import snapshot

        _print(snapshot(ws))


@_command()
@click.argument("what", nargs=-1, type=click.Choice(CLEANABLE))
@click.option("--confirm", is_flag=True, help="Delete it.")
@click.pass_obj
def clean(options: Options, what: tuple[str, ...], confirm: bool) -> None:
    """Show what could be deleted, and its size; delete it with --confirm."""
    from engine.run.control import running_jobs
    from engine.workspace import clean_targets, remove_entry
    from gladius_tui.headless import size

    ws = options.workspace
    targets = clean_targets(ws, what or CLEANED_BY_DEFAULT)
    if confirm and (jobs := running_jobs(ws)):
        raise _locked(jobs)
    if options.json:
        entries = [{"path": str(path), "bytes": count} for path, count in targets]
        _print_json({"deleted": confirm, "entries": entries})
    else:
        _print(f"{size(count):>11}  {path.relative_to(ws.root)}" for path, count in targets)
        total = size(sum(count for _, count in targets))
        hint = "deleted" if confirm else "would go; delete with --confirm"
        _print(
            [f"{total:>11}  in {len(targets)} entries {hint}" if targets else "nothing to clean"]
        )
    if confirm:
        for path, _ in targets:
            remove_entry(path)


def _locked(jobs: list[Job]) -> GladiusError:
    from engine.errors import LockedError

    return LockedError(f"{' and '.join(jobs)} runs here; end it first: gladius_train stop")


def _train(options: Options, ws: Workspace, launch: Launch) -> None:
    from engine.config import to_json

    if not options.quiet:
        for note in launch.notes:
            _narrate(note)
    config = to_json(launch.config)
    _run(options, ws, job="train", config=config, resume=launch.resume, fresh=launch.fresh)


def _run(
    options: Options,
    ws: Workspace,
    *,
    job: Job,
    config: bytes,
    resume: bool = False,
    fresh: bool = False,
) -> None:
    """Run a job in the foreground, printing its events, and end with its exit code."""
    from engine.run.events import RunEnded
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
        _narrate(f"error: {failure}")
    if code:
        raise click.exceptions.Exit(code)


def _send(options: Options, ws: Workspace, command: AnyCommand, job: Job | None) -> None:
    """Ask the running job for `command`, and print its acknowledgement."""
    from engine.run.control import attach
    from engine.run.events import encode
    from gladius_tui.headless import acknowledgement

    chosen = _chosen_job(ws, job)
    if chosen is None:
        raise MissingError("no job runs here; start one with: gladius_train train")
    with attach(ws, chosen) as attachment:
        event = attachment.send(command)
    _print([encode(event).decode() if options.json else acknowledgement(event)])


def _chosen_job(ws: Workspace, job: Job | None) -> Job | None:
    """The job that is meant: the named one, else the one that runs; None when none does."""
    from engine.run.control import running_jobs

    if job is not None:
        return job
    running = running_jobs(ws)
    if len(running) > 1:
        raise UsageError(f"{' and '.join(running)} run here; say which with --job")
    return running[0] if running else None


def _plain(struct: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(struct)


def _print_json(value: Any) -> None:
    import msgspec

    _print([msgspec.json.format(msgspec.json.encode(value), indent=2).decode()])


def _print(lines: Any) -> None:
    from gladius_tui.headless import print_lines

    print_lines(lines)


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _log_traceback(arguments: list[str]) -> None:
    """Append the current exception to today's log, where there is a folder for it."""
    import traceback

    place = arguments.index("--root") + 1 if "--root" in arguments else 0
    try:
        log = Workspace.find(arguments[place] if place else None).log_file()
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"gladius_train {' '.join(arguments)}\n{traceback.format_exc()}")
    except (OSError, GladiusError):
        pass  # there is no root yet, or no room: the line on standard error must do


def _narrate(text: str) -> None:
    from gladius_tui.headless import print_lines

    print_lines([text], sys.stderr)


def _globals_first(arguments: list[str]) -> list[str]:
    """The arguments with the global options before the command, wherever they stood."""
    first: list[str] = []
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            rest += [word, *queue]
            break
        if word in _FLAGS:
            first.append(word)
        elif word.startswith("--root="):
            first += word.split("=", 1)
        elif word == "--root":
            first += [word, *queue[:1]]
            del queue[:1]
        else:
            rest.append(word)
    return first + rest


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on standard error."""
    arguments = _globals_first(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        return app(args=arguments, prog_name="gladius_train", standalone_mode=False) or 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "gladius_train"
        message = " ".join(error.format_message().split()).rstrip(".")
        _narrate(f"error: {message}; see: {path} --help")
        return ExitCode.USAGE
    except GladiusError as error:
        if debug:
            _print_traceback()
        _narrate(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _narrate("interrupted")
        return ExitCode.SIGINT
    except Exception as error:
        if debug:
            _print_traceback()
        _log_traceback(arguments)
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        _narrate(f"error: {summary}; a fault of the program: see the log, or run it with --debug")
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
