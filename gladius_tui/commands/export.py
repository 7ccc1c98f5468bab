"""The command `export`: write the trained model as a GGUF file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from engine.errors import MissingError, UsageError
from gladius_tui.shell import Options, command, open_screen, print_stderr, run_in_foreground


@command()
@click.option("--type", "kind", metavar="TYPE", help="f32, f16 (default), bf16, q8_0, q4_k_m ...")
@click.option("--checkpoint", metavar="WHICH", help="latest, best, or a step.")
@click.option("--output", metavar="FILE", help="The file, or a folder for it.")
@click.option("--push", metavar="REPO", help="Upload model and file to the Hub: owner/name.")
@click.option("--private", is_flag=True, help="With --push: create the repository as private.")
@click.option("--yes", is_flag=True, help="With --push: don't ask for confirmation.")
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
    """Write the trained model as a GGUF file.

    The type is part of the file's name, except for f16. The file is compared with the model; a
    Modelfile and a model card are written next to it.
    """
    if options.use_screen and not push:  # --push asks for confirmation in the terminal
        open_screen(options, "export", start=True)
    import msgspec

    from engine.gguf_types import DEFAULT_TYPE, gguf_type
    from engine.programs import can_quantize, quantizer_missing

    if (private or yes) and not push:
        raise UsageError("--private and --yes need --push REPO")
    chosen = gguf_type(kind or DEFAULT_TYPE)
    if not chosen.own and not can_quantize():
        raise MissingError(quantizer_missing(chosen.name))
    ws = options.workspace
    ws.create()
    if push and not yes:
        _confirm_push(push, private)
    config = {
        "type": chosen.name,
        "checkpoint": checkpoint,
        "output": None if output is None else _absolute(output),
        "push": push,
        "private": private,
    }
    run_in_foreground(options, ws, job="export", config=msgspec.json.encode(config))


def _absolute(output: str) -> str:
    """The path for the worker, whose current folder may differ; a trailing slash means a folder."""
    return str(Path(output).expanduser().absolute()) + ("/" if output.endswith("/") else "")


def _confirm_push(repo: str, private: bool) -> None:
    """Ask for confirmation before anything is uploaded."""
    if not sys.stdin.isatty():
        raise UsageError("--push needs a terminal to ask for confirmation; add --yes to skip it")
    what = "a private repository" if private else "a PUBLIC repository, unless it exists already"
    if not click.confirm(f"Upload the model and its GGUF file to {repo} ({what})?", err=True):
        print_stderr("nothing exported, nothing uploaded; to export only, leave out --push")
        raise click.exceptions.Exit(1)
