"""Owns the command that makes a GGUF file of the trained model."""

from __future__ import annotations

import sys

import click

from engine.errors import UsageError
from gladius_tui.shell import Options, command, narrate, open_screen, run_here


@command()
@click.option("--type", "kind", metavar="TYPE", help="f32, f16 (default), bf16, q8_0, q4_k_m ...")
@click.option("--checkpoint", metavar="WHICH", help="latest, best, or a step.")
@click.option("--output", metavar="FILE", help="The file, or a folder for it.")
@click.option("--push", metavar="REPO", help="Upload model and file to the Hub: owner/name.")
@click.option("--private", is_flag=True, help="With --push: a new repository is private.")
@click.option("--yes", is_flag=True, help="With --push: don't ask.")
@click.pass_obj
def export(
    options: Options,
    kind: str | None,
    checkpoint: str | None,
    output: str | None,
    push: str | None,
    private: bool,
    yes: bool,
) -> None:
    """Make a GGUF file of the trained model, verified, with Modelfile and model card."""
    if options.wants_screen and not push:  # before an upload it asks, in the terminal
        open_screen(options, "export", start=True)
    from pathlib import Path

    import msgspec

    from engine.gguf_types import DEFAULT_TYPE, gguf_type

    if (private or yes) and not push:
        raise UsageError("--private and --yes belong to --push REPO")
    wanted = gguf_type(kind or DEFAULT_TYPE).name
    ws = options.workspace
    ws.create()
    if push and not yes:
        _ask(push, private)
    where = None
    if output is not None:
        # The worker may stand elsewhere; a slash at the end says that it is a folder.
        where = str(Path(output).expanduser().absolute()) + ("/" if output.endswith("/") else "")
    config = {
        "type": wanted,
        "checkpoint": checkpoint,
        "output": where,
        "push": push,
        "private": private,
    }
    run_here(options, ws, job="export", config=msgspec.json.encode(config))


def _ask(repo: str, private: bool) -> None:
    """Ask before anything leaves this machine."""
    if not sys.stdin.isatty():
        raise UsageError("--push asks before it uploads, and nobody is here: add --yes")
    what = "a private repository" if private else "a PUBLIC repository, unless it is there already"
    if not click.confirm(f"Upload the model and its GGUF file to {repo} ({what})?", err=True):
        narrate("nothing is exported and nothing uploaded; leave out --push for the file alone")
        raise click.exceptions.Exit(1)
