"""Owns the commands about what experts write: have it made, look at it, take it along."""

from __future__ import annotations

import click

from engine.errors import MissingError, UsageError
from gladius_tui.shell import EPILOG, Options, app, narrate, print_json, print_out, run_here


@app.group(epilog=EPILOG)
def data() -> None:
    """Have experts write answers; look at them, export them."""


@data.command(epilog=EPILOG)
@click.option(
    "--expert",
    "experts",
    metavar="NAME",
    multiple=True,
    help="Who writes (repeatable) [the preset's].",
)
@click.option(
    "--count", type=click.IntRange(min=1), help="Answers in all [every hand-written prompt once]."
)
@click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="Only this one (repeatable) [all of the expert's].",
)
@click.option("--preset", metavar="NAME", help="A config that ships: 1b, nano, demo.")
@click.option("--config", metavar="FILE", help="TOML laid over the preset.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field: section.field=value (repeatable).",
)
@click.pass_obj
def make(
    options: Options,
    experts: tuple[str, ...],
    count: int | None,
    capabilities: tuple[str, ...],
    preset: str | None,
    config: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Let experts write answers to prompts, and check them; a stopped call goes on.

    A training run with the same options finds the answers there.
    """
    from engine.config import load_config, to_json
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    ws.create()
    changes = list(overrides)
    if count is not None:
        changes.append(f"data.max_answers={count}")
    if capabilities:
        quoted = ", ".join(f'"{name}"' for name in capabilities)
        changes.append(f"data.capabilities=[{quoted}]")
    run_config = load_config(
        ws, preset=preset, file=config, overrides=changes, experts=list(experts) or None
    )
    known = load_experts(ws)
    names = run_config.experts.names
    lacking = [name for name in names if expert_status(ws, known[name]).state != "ready"]
    if lacking:
        raise MissingError(
            f"not ready: {', '.join(lacking)}; fetch with: gladius_train download "
            f"{' '.join(lacking)}; or name another: --expert smollm2"
        )
    run_here(options, ws, job="data", config=to_json(run_config))


@data.command(epilog=EPILOG)
@click.option("--expert", metavar="NAME", help="Only this one's answers.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Answers shown of each capability.",
)
@click.option("--dropped", is_flag=True, help="Show dropped answers, with the reason.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which samples.")
@click.option(
    "--keep",
    type=click.Choice(("right", "sound", "all")),
    default="right",
    show_default=True,
    help="As data.keep_answers.",
)
@click.pass_obj
def inspect(
    options: Options, expert: str | None, samples: int, dropped: bool, seed: int, keep: str
) -> None:
    """Count what was written, kept and dropped, and why; show samples."""
    from gladius_tui.answers import inspect_lines, plain_report, read_all

    found = read_all(options.workspace, expert, keep)
    if not found:
        raise MissingError(
            "no expert has written answers here; begin with: gladius_train data make"
        )
    if options.json:
        print_json([plain_report(one) for one in found])
        return
    for one in found:
        print_out(inspect_lines(one, samples=samples, dropped=dropped, seed=seed))


@data.command(epilog=EPILOG)
@click.argument("path", metavar="FILE.jsonl")
@click.option("--expert", metavar="NAME", help="Only this one's answers.")
@click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="Only this one (repeatable).",
)
@click.option(
    "--keep",
    type=click.Choice(("right", "sound", "all")),
    default="right",
    show_default=True,
    help="As data.keep_answers.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.pass_obj
def export(
    options: Options,
    path: str,
    expert: str | None,
    capabilities: tuple[str, ...],
    keep: str,
    force: bool,
) -> None:
    """Write the kept conversations as JSON Lines, as --data reads them."""
    from pathlib import Path

    from engine.experts.registry import CAPABILITIES
    from engine.prompts.answers import to_example
    from engine.text.examples import encode_example
    from engine.workspace import write_bytes
    from gladius_tui.answers import read_all

    if unknown := set(capabilities) - set(CAPABILITIES):
        raise UsageError(
            f"unknown capability {', '.join(sorted(unknown))}; known: {', '.join(CAPABILITIES)}"
        )
    target = Path(path).expanduser()
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; choose another name, or give --force")
    lines = [
        encode_example(to_example(one.answer, answers.head.expert))
        for answers in read_all(options.workspace, expert, keep)
        for one in answers.judged
        if one.kept and (not capabilities or one.answer.prompt.capability in capabilities)
    ]
    if not lines:
        raise MissingError("there is nothing to export; make some with: gladius_train data make")
    try:
        write_bytes(target, b"\n".join(lines) + b"\n")
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}; choose another place") from error
    narrate(f"{len(lines):,} conversations in {target}; learn from them with: --data {target}")
