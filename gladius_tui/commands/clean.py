"""Owns the command that clears leftovers away."""

from __future__ import annotations

import click

from engine.errors import LockedError
from engine.workspace import CLEANABLE, CLEANED_BY_DEFAULT
from gladius_tui.shell import Options, command, print_json, print_out


@command()
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
        raise LockedError(f"{' and '.join(jobs)} runs here; end it first: gladius_train stop")
    if options.json:
        entries = [{"path": str(path), "bytes": count} for path, count in targets]
        print_json({"deleted": confirm, "entries": entries})
    else:
        print_out(f"{size(count):>11}  {path.relative_to(ws.root)}" for path, count in targets)
        total = size(sum(count for _, count in targets))
        hint = "deleted" if confirm else "would go; delete with --confirm"
        print_out(
            [f"{total:>11}  in {len(targets)} entries {hint}" if targets else "nothing to clean"]
        )
    if confirm:
        for path, _ in targets:
            remove_entry(path)
