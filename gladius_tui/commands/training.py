"""Owns the commands of a training run: start it, ask of it, look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.errors import UsageError
from gladius_tui.shell import (
    Options,
    chosen_job,
    command,
    job_option,
    narrate,
    open_screen,
    plain,
    print_json,
    print_out,
    run_here,
    send,
)

if TYPE_CHECKING:
    from engine.events import Job
    from engine.preflight import Launch
    from engine.workspace import Workspace

overrides_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a field: section.field=value (repeatable).",
)


@command()
@click.pass_obj
def status(options: Options) -> None:
    """Show where the training run stands."""
    from engine.experts.registry import expert_status, load_experts
    from engine.run.state import read_state

    ws = options.workspace
    state = read_state(ws)
    experts = {name: expert_status(ws, spec) for name, spec in load_experts(ws).items()}
    if options.json:
        print_json({**plain(state), "root": str(ws.root), "experts": list(experts.values())})
        return
    from gladius_tui.status import status_lines

    print_out(status_lines(state, experts))


@command()
@click.option("--preset", metavar="NAME", help="A config that ships: 1b, nano, demo.")
@click.option("--config", metavar="FILE", help="TOML laid over the preset.")
@click.option("--experts", metavar="A,B", help="Experts, in the order of their phases.")
@click.option("--hours", type=float, help="Training time of the whole run, save included.")
@click.option(
    "--data",
    metavar="SOURCE",
    multiple=True,
    help="Text to learn from: a file or folder (.jsonl .txt .md .parquet), or "
    "hf:DATASET[:SPLIT[:COLUMN]] (repeatable).",
)
@click.option("--fresh", is_flag=True, help="Begin anew; a former run is kept aside.")
@overrides_option
@click.pass_obj
def train(
    options: Options,
    preset: str | None,
    config: str | None,
    experts: str | None,
    hours: float | None,
    data: tuple[str, ...],
    fresh: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the student; an unfinished run of the same config goes on."""
    if options.wants_screen:
        open_screen(options, "train", start=True)
    from engine.config import load_config
    from engine.preflight import launch_training

    ws = options.workspace
    ws.create()
    notes: list[str] = []
    run_config = load_config(
        ws,
        preset=preset,
        file=config,
        overrides=overrides,
        experts=None if experts is None else [n.strip() for n in experts.split(",") if n.strip()],
        data=data,
        hours=hours,
        notes=notes,
    )
    if not options.quiet:
        for note in notes:
            narrate(note)
    _train(options, ws, launch_training(ws, run_config, fresh=fresh))


@command()
@click.option("--hours", type=float, help="Training time of the whole run, what is done included.")
@overrides_option
@job_option
@click.pass_obj
def resume(
    options: Options, hours: float | None, overrides: tuple[str, ...], job: Job | None
) -> None:
    """Go on: a paused run at once, an ended one from its last checkpoint."""
    from engine.events import Resume
    from engine.preflight import launch_resume
    from engine.run.control import running_jobs
    from engine.run.state import read_state

    ws = options.workspace
    if job not in (None, "train"):
        if hours is not None or overrides:
            raise UsageError(f"--hours and --set are for training; {job} has no use for them")
        send(options, ws, Resume(), job)
        return
    if "train" in running_jobs(ws) and read_state(ws).status == "paused":
        if hours is not None or overrides:
            raise UsageError("a paused run keeps its config; stop it first: gladius_train stop")
        send(options, ws, Resume(), "train")
        return
    if options.wants_screen:
        open_screen(options, "dashboard", start=True)
    _train(options, ws, launch_resume(ws, overrides, hours))


@command()
@job_option
@click.pass_obj
def pause(options: Options, job: Job | None) -> None:
    """Let the running job stand still after its current step."""
    from engine.events import Pause

    send(options, options.workspace, Pause(), job)


@command()
@job_option
@click.pass_obj
def checkpoint(options: Options, job: Job | None) -> None:
    """Let the running job save a checkpoint after its current step."""
    from engine.events import Checkpoint

    job = chosen_job(options.workspace, job)
    if job not in (None, "train"):
        raise UsageError(f"{job} has no checkpoints, only training does; nothing of it is lost")
    send(options, options.workspace, Checkpoint(), job)


@command()
@click.option("--finish", is_flag=True, help="Decay the learning rate and save the model first.")
@job_option
@click.pass_obj
def stop(options: Options, finish: bool, job: Job | None) -> None:
    """End the running job with a checkpoint."""
    from engine.events import Stop

    send(options, options.workspace, Stop(finish=finish), job)


@command()
@click.option("--follow", "-f", is_flag=True, help="Print the run's events until it ends.")
@job_option
@click.pass_context
def dashboard(context: click.Context, follow: bool, job: Job | None) -> None:
    """Show the running job, or the last one."""
    options: Options = context.obj
    ws = options.workspace
    if follow:
        from gladius_tui.follow import follow_job

        follow_job(ws, chosen_job(ws, job) or "train", as_json=options.json, quiet=options.quiet)
    elif options.json:
        context.invoke(status)
    elif options.wants_screen:
        open_screen(options, "dashboard")
    else:
        from gladius_tui.follow import snapshot

        print_out(snapshot(ws))


def _train(options: Options, ws: Workspace, launch: Launch) -> None:
    from engine.config import to_json

    if not options.quiet:
        for note in launch.notes:
            narrate(note)
    config = to_json(launch.config)
    run_here(options, ws, job="train", config=config, resume=launch.resume, fresh=launch.fresh)
