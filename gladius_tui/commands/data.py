"""The commands `data make`, `data inspect` and `data export`: answers written by experts."""

from __future__ import annotations

from pathlib import Path

import click

from engine.errors import MissingError, UsageError
from gladius_tui.commands.run_options import config_option, overrides_option, preset_option
from gladius_tui.shell import (
    EPILOG,
    Options,
    app,
    print_json,
    print_stderr,
    print_stdout,
    run_in_foreground,
)

expert_option = click.option("--expert", metavar="NAME", help="Only the answers of this expert.")
capability_option = click.option(
    "--capability",
    "capabilities",
    metavar="NAME",
    multiple=True,
    help="Only this capability (repeatable) [all of the expert's].",
)
keep_option = click.option(
    "--keep",
    type=click.Choice(("right", "sound", "all")),
    default="right",
    show_default=True,
    help="Which answers to keep, as data.keep_answers.",
)


@app.group(epilog=EPILOG)
def data() -> None:
    """Generate answers with experts, inspect them, export them."""


@data.command(epilog=EPILOG)
@click.option(
    "--expert",
    "experts",
    metavar="NAME",
    multiple=True,
    help="The expert that writes (repeatable) [the preset's].",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    help="Answers of each expert [one for every hand-written prompt].",
)
@capability_option
@preset_option
@config_option
@overrides_option
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
    """Generate answers to prompts and check them.

    Continues where it was stopped. A training run with the same options uses these answers.
    """
    from engine.config import load_config, to_json

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
    _check_ready(options, run_config.experts.names)
    run_in_foreground(options, ws, job="data", config=to_json(run_config))


def _check_ready(options: Options, names: list[str]) -> None:
    """MissingError unless these experts are downloaded and verified."""
    from engine.experts.registry import expert_status, load_experts

    ws = options.workspace
    registered = load_experts(ws)
    missing = [name for name in names if not expert_status(ws, registered[name]).usable]
    if missing:
        joined = " ".join(missing)
        raise MissingError(
            f"not ready: {', '.join(missing)}; download with: gladius_train download {joined}; "
            "or name another: --expert smollm2"
        )


@data.command(epilog=EPILOG)
@expert_option
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Answers to show for each capability.",
)
@click.option("--dropped", is_flag=True, help="Show dropped answers, with the reason.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the samples.")
@keep_option
@click.pass_obj
def inspect(
    options: Options, expert: str | None, samples: int, dropped: bool, seed: int, keep: str
) -> None:
    """Count the kept and dropped answers, with reasons; show samples."""
    from gladius_tui.commands.data_report import read_answers, report_fields, report_lines

    files = read_answers(options.workspace, expert, keep)
    if not files:
        raise MissingError(
            "no expert has written answers here; generate some with: gladius_train data make"
        )
    if options.json:
        print_json([report_fields(file) for file in files])
        return
    for file in files:
        print_stdout(report_lines(file, samples=samples, dropped=dropped, seed=seed))


@data.command(epilog=EPILOG)
@click.argument("path", metavar="FILE.jsonl")
@expert_option
@capability_option
@keep_option
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.pass_obj
def export(
    options: Options,
    path: str,
    expert: str | None,
    capabilities: tuple[str, ...],
    keep: str,
    force: bool,
) -> None:
    """Write the kept conversations to a file for --data."""
    from engine.experts.registry import CAPABILITIES
    from engine.prompts.answers import to_example
    from engine.text.examples import encode_example
    from engine.workspace import write_bytes
    from gladius_tui.commands.data_report import read_answers

    if unknown := set(capabilities) - set(CAPABILITIES):
        raise UsageError(
            f"unknown capability {', '.join(sorted(unknown))}; known: {', '.join(CAPABILITIES)}"
        )
    target = Path(path).expanduser()
    if target.exists() and not force:
        raise UsageError(f"{target} exists; choose another name, or overwrite it with --force")
    lines = [
        encode_example(to_example(judged.answer, file.head.expert))
        for file in read_answers(options.workspace, expert, keep)
        for judged in file.answers
        if judged.kept and (not capabilities or judged.answer.prompt.capability in capabilities)
    ]
    if not lines:
        raise MissingError("no answers to export; generate some with: gladius_train data make")
    try:
        write_bytes(target, b"\n".join(lines) + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"can't write {target}: {reason}; choose another path") from error
    print_stderr(f"{len(lines):,} conversations in {target}; train on them with: --data {target}")
