"""The command `clean`: list leftover files and delete them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import click

from engine.cleaning import CLEANABLE, CLEANED_BY_DEFAULT
from engine.errors import ExitCode, LockedError
from engine.foreign_text import shown
from engine.workspace import Workspace
from gladius_tui.shell import Options, command, print_json, print_stderr, print_stdout

Targets = list[tuple[Path, int]]
"""Paths with their size in bytes."""


@command()
@click.argument("what", nargs=-1, type=click.Choice(CLEANABLE))
@click.option("--confirm", is_flag=True, help="Delete the files.")
@click.pass_obj
def clean(options: Options, what: tuple[str, ...], confirm: bool) -> None:
    """List leftover files with sizes; delete them with --confirm.

    Without names: downloads, partials and logs. Checkpoints, experts, models, the history, the
    cache and the experts' answers are deleted only if you name them. Of models/ only files that
    this program has made are deleted.
    """
    from engine.cleaning import clean_targets, linked_folders

    ws = options.workspace
    names = what or CLEANED_BY_DEFAULT
    targets = clean_targets(ws, names)
    failures: dict[Path, str] = {}
    if confirm:
        targets, failures = _delete(ws, names)
    for folder in linked_folders(ws, names):
        print_stderr(f"{folder} is a symbolic link: its target is not cleaned")
    _print_result(options, targets, failures, confirm)
    for path, reason in failures.items():
        print_stderr(f"error: can't delete {path}: {reason}; delete it by hand")
    if failures:
        raise click.exceptions.Exit(ExitCode.FAILED)


def _print_result(
    options: Options, targets: Targets, failures: dict[Path, str], confirm: bool
) -> None:
    from gladius_tui.format import size

    cleaned = [(path, count) for path, count in targets if path not in failures]
    if options.json:
        entries = [{"path": shown(str(path)), "bytes": count} for path, count in cleaned]
        failed = [{"path": shown(str(path)), "reason": reason} for path, reason in failures.items()]
        print_json({"deleted": confirm, "entries": entries, "failed": failed})
    elif not cleaned:
        print_stdout(["nothing to clean" if not failures else "nothing deleted"])
    else:
        if not options.quiet:
            root = options.workspace.root
            print_stdout(f"{size(count):>11}  {path.relative_to(root)}" for path, count in cleaned)
        total = size(sum(count for _, count in cleaned))
        entries = "1 entry" if len(cleaned) == 1 else f"{len(cleaned)} entries"
        outcome = "deleted" if confirm else "would be deleted; delete with --confirm"
        print_stdout([f"{total:>11}  in {entries} {outcome}"])


def _delete(ws: Workspace, names: tuple[str, ...]) -> tuple[Targets, dict[Path, str]]:
    """Delete, and return all targets and the reasons of those that could not be deleted.

    All job locks are held meanwhile, so that no job is running and none can start.

    Raises:
        LockedError: a job is running.
    """
    from engine.cleaning import clean_targets
    from engine.events import Job
    from engine.run.control import running_jobs
    from engine.run.lock import hold_lock
    from engine.workspace import remove_entry

    failures: dict[Path, str] = {}
    if jobs := running_jobs(ws):
        verb = "is" if len(jobs) == 1 else "are"
        raise LockedError(
            f"{' and '.join(jobs)} {verb} running here; stop it first: gladius_train stop"
        )
    with contextlib.ExitStack() as locks:
        # Without tmp/ no job can run, and there is no folder for a lock.
        for job in get_args(Job) if ws.tmp.is_dir() else ():
            locks.enter_context(hold_lock(ws, job))
        targets = clean_targets(ws, names)
        for path, _ in targets:
            try:
                remove_entry(path)
            except OSError as error:
                failures[path] = error.strerror or str(error)
    return targets, failures
