"""The command palette: every screen, the keys of the current one, and every command of the command
line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import click
from textual.app import App, SystemCommand
from textual.dom import DOMNode
from textual.screen import Screen

from engine.events import Job
from engine.run.job import JOBS
from gladius_tui.app.model.modes import MODES
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.services import AppServices

_JOB_COMMANDS = {"pause", "checkpoint", "stop"}
_MODES = {mode.name for mode in MODES}


def palette_commands(app: App, services: AppServices, screen: Screen) -> Iterator[SystemCommand]:
    """The entries of the palette while `screen` is shown."""
    for mode in MODES:
        show = partial(services.action_mode, mode.name)
        yield SystemCommand(f"Go to {mode.title}", mode.about, show)
    if isinstance(screen, GladiusScreen):
        yield from _key_entries(app, screen)
    yield from _command_entries(app, services)
    yield SystemCommand("Theme", "Choose the colours; the choice is saved", app.action_change_theme)


def _key_entries(app: App, screen: GladiusScreen) -> Iterator[SystemCommand]:
    """An entry for each key of the screen."""
    listed: set[str] = set()
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.id or not binding.description or binding.action in listed:
            continue  # bindings without an id are Textual's own, such as tab
        if binding.action.startswith("app.mode") or not active.enabled:
            continue
        if active.node not in (screen, app):
            continue
        listed.add(binding.action)
        key = app.get_key_display(binding)
        yield SystemCommand(
            f"{binding.description} ({key})",
            binding.tooltip or binding.description,
            partial(_run_action, app, binding.action, active.node),
        )


def _run_action(app: App, action: str, node: DOMNode) -> None:
    app.call_next(app.run_action, action, node)


def _command_entries(app: App, services: AppServices) -> Iterator[SystemCommand]:
    """An entry for each command of the command line: it opens its screen, or prints into one."""
    for name, command in sorted(services.commands.items()):
        about = command.get_short_help_str(90)
        title = f"gladius_train {name}"
        if name in _JOB_COMMANDS:
            yield SystemCommand(title, about, partial(_send_to_job, app, services, name))
        elif name in _MODES:
            yield SystemCommand(title, about, partial(services.action_mode, name))
        elif name == "resume":
            yield SystemCommand(title, about, partial(_resume, services))
        elif isinstance(command, click.Group):
            for word, sub in sorted(command.commands.items()):
                show_help = ["--help"] if any(param.required for param in sub.params) else []
                run = partial(_print, app, services, [name, word, *show_help])
                yield SystemCommand(f"{title} {word}", sub.get_short_help_str(90), run)
        else:
            show_help = ["--help"] if any(param.required for param in command.params) else []
            run = partial(_print, app, services, [name, *show_help])
            yield SystemCommand(title, about, run)


def _print(app: App, services: AppServices, argv: Sequence[str]) -> None:
    from gladius_tui.app.dialogs.command_output import CommandOutput

    app.push_screen(CommandOutput(str(services.ws.root), argv))


def _resume(services: AppServices) -> None:
    services.action_mode("dashboard")
    services.launch(["resume"])


def _send_to_job(app: App, services: AppServices, name: str) -> None:
    """Send a command to the running job, to training if several run."""
    from engine.events import Checkpoint, Pause

    jobs = services.watcher.jobs
    if not jobs:
        text = "No job is running. Press 3 to start a training run."
        app.notify(text, severity="warning", markup=False)
        return
    job = "train" if "train" in jobs else next(iter(jobs))
    if name == "stop":
        _ask_to_stop(app, services, job)
    else:
        services.send_command(job, Pause() if name == "pause" else Checkpoint())


def _ask_to_stop(app: App, services: AppServices, job: Job) -> None:
    """Stop the job if the user confirms it."""
    from engine.events import Stop
    from gladius_tui.app.dialogs.choice import Choice

    def answered(choice: str | None) -> None:
        if choice == "yes":
            services.send_command(job, Stop())

    title = JOBS[job].title
    text = f"The {title} saves its progress and stops. The same command continues it."
    answers = [("yes", f"Stop the {title}"), ("no", "Keep it running")]
    app.push_screen(Choice("Stop", text, answers, selected="yes"), answered)
