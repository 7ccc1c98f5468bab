"""Owns the commands about what lies on the disk: experts and leftovers."""

from __future__ import annotations

import click

from engine.errors import LockedError, UsageError
from engine.workspace import CLEANABLE, CLEANED_BY_DEFAULT
from gladius_tui.shell import Options, command, plain, print_json, print_out, run_here


@command()
@click.pass_obj
def models(options: Options) -> None:
    """List the experts and what of them lies here."""
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    if options.json:
        print_json([plain(spec) | plain(statuses[name]) for name, spec in specs.items()])
        return
    from gladius_tui.report import models_lines

    print_out(models_lines(list(specs.values()), statuses))


@command()
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
    run_here(options, ws, job="download", config=config)


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
