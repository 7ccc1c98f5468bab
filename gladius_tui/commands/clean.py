"""Owns the command that clears leftovers away."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import click

from engine.errors import ExitCode, LockedError
from engine.workspace import CLEANABLE, CLEANED_BY_DEFAULT, Workspace
from gladius_tui.shell import Options, command, narrate, print_json, print_out


@command()
@click.argument("what", nargs=-1, type=click.Choice(CLEANABLE))
@click.option("--confirm", is_flag=True, help="Delete it.")
@click.pass_obj
def clean(options: Options, what: tuple[str, ...], confirm: bool) -> None:
    """Show what could be deleted, and its size; delete it with --confirm.

    Without names: downloads, partials and logs. Checkpoints, experts, models, the history, the
    cache and what experts wrote go only when they are named.
    """
    from engine.workspace import clean_targets, linked_folders
    from gladius_tui.format import size

    ws = options.workspace
    names = what or CLEANED_BY_DEFAULT
    targets = clean_targets(ws, names)
    failures: dict[Path, str] = {}
    if confirm:
        targets, failures = _delete(ws, names)
    for folder in linked_folders(ws, names):
        narrate(f"{folder} is a link: what it leads to is left alone")
    gone = [(path, count) for path, count in targets if path not in failures]
    if options.json:
        entries = [{"path": str(path), "bytes": count} for path, count in gone]
        failed = [{"path": str(path), "reason": why} for path, why in failures.items()]
        print_json({"deleted": confirm, "entries": entries, "failed": failed})
    elif not gone:
        print_out(["nothing to clean" if not failures else "nothing deleted"])
    else:
        if not options.quiet:
            print_out(f"{size(count):>11}  {path.relative_to(ws.root)}" for path, count in gone)
        total = size(sum(count for _, count in gone))
        entries = "1 entry" if len(gone) == 1 else f"{len(gone)} entries"
        hint = "deleted" if confirm else "would go; delete with --confirm"
        print_out([f"{total:>11}  in {entries} {hint}"])
    for path, why in failures.items():
        narrate(f"error: can't delete {path}: {why}; delete it by hand")
    if failures:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _delete(
    ws: Workspace, names: tuple[str, ...]
) -> tuple[list[tuple[Path, int]], dict[Path, str]]:
    """Delete while every job's lock is ours, so that none runs and none starts meanwhile; what was
    found, and what could not be deleted, with the reason."""
    from engine.events import Job
    from engine.run.control import running_jobs
    from engine.run.lock import hold_lock
    from engine.workspace import clean_targets, remove_entry

    failures: dict[Path, str] = {}
    if jobs := running_jobs(ws):
        raise LockedError(f"{' and '.join(jobs)} runs here; end it first: gladius_train stop")
    with contextlib.ExitStack() as locks:
        # Without tmp/ there is nothing that a job could run on, nor a place for a lock.
        for job in get_args(Job) if ws.tmp.is_dir() else ():
            locks.enter_context(hold_lock(ws, job))
        targets = clean_targets(ws, names)
        for path, _ in targets:
            try:
                remove_entry(path)
            except OSError as error:
                failures[path] = error.strerror or str(error)
    return targets, failures
