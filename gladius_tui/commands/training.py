"""The commands of a training run: start, resume, pause, checkpoint, stop, show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.errors import UsageError
from engine.run.extras import RunExtras
from gladius_tui.commands.run_options import (
    config_option,
    data_option,
    experts_option,
    hours_option,
    lenient_option,
    log_to_option,
    name_option,
    note_option,
    overrides_option,
    preset_option,
    split_names,
    with_lenient,
)
from gladius_tui.shell import (
    Options,
    command,
    job_option,
    open_screen,
    print_json,
    print_stderr,
    print_stdout,
    run_in_foreground,
    select_job,
    send_command,
    to_builtins,
)

if TYPE_CHECKING:
    from engine.events import Job
    from engine.preflight import Launch
    from engine.workspace import Workspace


@command()
@click.pass_obj
def status(options: Options) -> None:
    """Show the state of the training run."""
    from engine.experts.registry import expert_status, load_experts
    from engine.run.state import read_state

    ws = options.workspace
    state = read_state(ws)
    experts = {name: expert_status(ws, spec) for name, spec in load_experts(ws).items()}
    if options.json:
        fields = to_builtins(state)
        print_json({**fields, "root": str(ws.root), "experts": list(experts.values())})
        return
    from gladius_tui.status import status_lines

    print_stdout(status_lines(state, experts))


@command()
@preset_option
@config_option
@experts_option
@hours_option
@data_option
@lenient_option
@click.option("--fresh", is_flag=True, help="Start from step 0; a previous run is moved aside.")
@overrides_option
@name_option
@note_option
@log_to_option
@click.pass_obj
def train(
    options: Options,
    preset: str | None,
    config: str | None,
    experts: str | None,
    hours: float | None,
    data: tuple[str, ...],
    data_lenient: bool,
    fresh: bool,
    overrides: tuple[str, ...],
    name: str | None,
    note: str | None,
    log_to: tuple[str, ...],
) -> None:
    """Train the student.

    Resumes an unfinished run of the same config.
    """
    if options.use_screen:
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
        overrides=with_lenient(overrides, data_lenient),
        experts=split_names(experts),
        data=data,
        hours=hours,
        notes=notes,
    )
    if not options.quiet:
        for note in notes:
            print_stderr(note)
    launch = launch_training(ws, run_config, fresh=fresh)
    _train(options, ws, launch, RunExtras(name=name, note=note, log_to=log_to))


@command()
@click.option(
    "--hours", type=float, help="Hours of the whole run, past training and save included."
)
@lenient_option
@overrides_option
@log_to_option
@job_option
@click.pass_obj
def resume(
    options: Options,
    hours: float | None,
    data_lenient: bool,
    overrides: tuple[str, ...],
    log_to: tuple[str, ...],
    job: Job | None,
) -> None:
    """Resume a paused or stopped run.

    A paused run continues at once, a stopped run from its last checkpoint.
    """
    from engine.events import Resume
    from engine.preflight import launch_resume
    from engine.run.control import running_jobs
    from engine.run.state import read_state

    ws = options.workspace
    overrides = with_lenient(overrides, data_lenient)
    if job not in (None, "train"):
        if hours is not None or overrides:
            raise UsageError(f"--hours and --set apply to training only, not to {job}")
        send_command(options, ws, Resume(), job)
        return
    if "train" in running_jobs(ws) and read_state(ws).status == "paused":
        if hours is not None or overrides:
            raise UsageError(
                "can't change the config of a paused run; stop it first: gladius_train stop"
            )
        send_command(options, ws, Resume(), "train")
        return
    if options.use_screen:
        open_screen(options, "dashboard", start=True)
    _train(options, ws, launch_resume(ws, overrides, hours), RunExtras(log_to=log_to))


@command()
@job_option
@click.pass_obj
def pause(options: Options, job: Job | None) -> None:
    """Pause the running job after its current step."""
    from engine.events import Pause

    send_command(options, options.workspace, Pause(), job)


@command()
@job_option
@click.pass_obj
def checkpoint(options: Options, job: Job | None) -> None:
    """Save a checkpoint after the current step of the running job."""
    from engine.events import Checkpoint

    job = select_job(options.workspace, job)
    if job not in (None, "train"):
        raise UsageError(f"{job} has no checkpoints, only training does; its finished work is kept")
    send_command(options, options.workspace, Checkpoint(), job)


@command()
@click.option("--finish", is_flag=True, help="Decay the learning rate and save the model first.")
@job_option
@click.pass_obj
def stop(options: Options, finish: bool, job: Job | None) -> None:
    """Stop the running job; training saves a checkpoint first."""
    from engine.events import Stop

    send_command(options, options.workspace, Stop(finish=finish), job)


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

        selected = select_job(ws, job) or "train"
        follow_job(ws, selected, as_json=options.json, quiet=options.quiet)
    elif options.json:
        context.invoke(status)
    elif options.use_screen:
        open_screen(options, "dashboard")
    else:
        from gladius_tui.follow import snapshot

        print_stdout(snapshot(ws))


def _train(options: Options, ws: Workspace, launch: Launch, extras: RunExtras) -> None:
    from engine.config import to_json

    extras.check(ws, launch.resume)
    if not options.quiet:
        for note in launch.notes:
            print_stderr(note)
    run_in_foreground(
        options,
        ws,
        job="train",
        config=to_json(launch.config),
        resume=launch.resume,
        fresh=launch.fresh,
        extras=extras,
        run_id=launch.run_id,
    )
