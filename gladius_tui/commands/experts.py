"""The commands about experts: list, verify, download, add and remove them."""

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
    open_screen,
    print_json,
    print_stderr,
    print_stdout,
    run_in_foreground,
    to_builtins,
)

if TYPE_CHECKING:
    from engine.events import AnyEvent


@app.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--verify", is_flag=True, help="Hash every downloaded file and load the tokenizers.")
@click.pass_context
def models(context: click.Context, verify: bool) -> None:
    """List the experts; add or remove your own."""
    options: Options = context.obj
    if context.invoked_subcommand is not None:
        if verify:
            raise UsageError("--verify goes without a subcommand: gladius_train models --verify")
        return
    if options.use_screen:
        open_screen(options, "models", start=verify)
    code = _verify(options) if verify else 0
    _print_models(options)
    if code:
        raise click.exceptions.Exit(code)


@models.command(epilog=EPILOG)
@click.argument("name")
@click.argument("target", metavar="PATH_OR_HUB_ID")
@click.option("--weight", type=float, help="Share of the budget and of the mix, relative [1].")
@click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="A capability that it teaches (repeatable) [all of them].",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit on the Hub [main].")
@click.option("--title", help="Name shown on screens.")
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
    """Register your own expert: a folder, a .gguf file or a Hub id. It is checked first."""
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
    code, size = _run_download_job(options, {"action": "check", "candidate": to_builtins(spec)})
    if code:
        raise click.exceptions.Exit(code)
    if spec.source == "hub" and size:
        table["size_bytes"] = size
    add_expert(ws, name, table)
    if options.json:
        print_json(table | {"name": name})
    else:
        fetch = f"download it with: gladius_train download {name}"
        use = f"train with it: gladius_train train --experts {name}"
        print_stdout([f"added {name}; {fetch if spec.source == 'hub' else use}"])


@models.command(epilog=EPILOG)
@click.argument("name")
@click.pass_obj
def remove(options: Options, name: str) -> None:
    """Remove your own expert from gladius.toml; its files are kept."""
    from engine.experts.own import remove_expert

    message = remove_expert(options.workspace, name)
    if options.json:
        print_json({"removed": name})
    else:
        print_stdout([message])


@command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "include_optional", is_flag=True, help="Include the optional experts.")
@click.option("--force", is_flag=True, help="Download again, even if verified.")
@click.pass_obj
def download(options: Options, names: tuple[str, ...], include_optional: bool, force: bool) -> None:
    """Download experts by name; without names, the required ones.

    `models` lists the names. An interrupted download continues where it stopped.
    """
    if options.use_screen:
        open_screen(options, "download", start=True)
    import msgspec

    from engine.experts.registry import load_experts
    from engine.structs import nearest

    ws = options.workspace
    experts = load_experts(ws)
    for name in names:
        if name not in experts:
            raise UsageError(f"unknown expert {name!r}; {nearest(name, experts)}")
    selected = list(dict.fromkeys(names))
    if include_optional:
        selected = [spec.name for spec in experts.values() if spec.source in ("hub", "wheel")]
    elif not selected:
        selected = [spec.name for spec in experts.values() if spec.required]
    config = msgspec.json.encode({"names": selected, "force": force})
    run_in_foreground(options, ws, job="download", config=config)


def _print_models(options: Options) -> None:
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    if options.json:
        rows = [to_builtins(spec) | to_builtins(statuses[name]) for name, spec in specs.items()]
        print_json(rows)
        return
    from gladius_tui.status import models_lines

    print_stdout(models_lines(list(specs.values()), statuses))


def _verify(options: Options) -> int:
    """Verify the downloaded files of every expert; returns the exit code."""
    from engine.experts.registry import expert_path, load_experts

    ws = options.workspace
    names = [spec.name for spec in load_experts(ws).values() if expert_path(ws, spec).exists()]
    if not names:
        return 0
    code, _ = _run_download_job(options, {"action": "verify", "names": names})
    return code


def _run_download_job(options: Options, config: dict[str, Any]) -> tuple[int, int]:
    """Run a download job and print its events on standard error: the command's own output is data.

    Returns its exit code and the bytes of the last finished progress.
    """
    import msgspec

    from engine.events import LogLine, Progress, RunEnded, RunStarted
    from engine.run.runner import run_job
    from gladius_tui.headless import Printer

    ws = options.workspace
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
            pass  # errors are printed at the end
        elif not options.quiet:
            printer(event)

    code = run_job(ws, job="download", config=msgspec.json.encode(config), on_event=on_event)
    if failure:
        print_stderr(f"error: {failure}")
    return code, counted
