"""Owns the command palette: every screen, what can be done on the one that is shown, and every
command of the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click
from textual.app import SystemCommand
from textual.dom import DOMNode
from textual.screen import Screen

from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.screens.modes import MODES

if TYPE_CHECKING:
    from gladius_tui.app.app import GladiusApp

_ASKED = {"pause", "checkpoint", "stop"}
_SCREENS = {mode.name for mode in MODES}


def commands(app: GladiusApp, screen: Screen) -> Iterator[SystemCommand]:
    """All there is to choose from while `screen` is shown."""
    for mode in MODES:
        yield SystemCommand(f"Go to {mode.title}", mode.about, partial(app.action_mode, mode.name))
    if isinstance(screen, GladiusScreen):
        yield from _bindings(app, screen)
    yield from _commands(app)
    yield SystemCommand("Theme", "Choose the colours; they are remembered", app.action_change_theme)


def _bindings(app: GladiusApp, screen: GladiusScreen) -> Iterator[SystemCommand]:
    """What the keys of the screen do."""
    told: set[str] = set()
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.id or not binding.description or binding.action in told:
            continue  # those without an id are Textual's own, such as tab
        if binding.action.startswith("app.mode") or not active.enabled:
            continue
        if active.node not in (screen, app):
            continue
        told.add(binding.action)
        key = app.get_key_display(binding)
        yield SystemCommand(
            f"{binding.description} ({key})",
            binding.tooltip or binding.description,
            partial(_act, app, binding.action, active.node),
        )


def _act(app: GladiusApp, action: str, node: DOMNode) -> None:
    app.call_next(app.run_action, action, node)


def _commands(app: GladiusApp) -> Iterator[SystemCommand]:
    """The commands of the command line, each in its screen or with what it prints."""
    from gladius_tui.shell import app as group

    for name, command in sorted(group.commands.items()):
        about = command.get_short_help_str(90)
        title = f"gladius_train {name}"
        if name in _ASKED:
            yield SystemCommand(title, about, partial(_ask, app, name))
        elif name in _SCREENS:
            yield SystemCommand(title, about, partial(app.action_mode, name))
        elif name == "resume":
            yield SystemCommand(title, about, partial(_launch, app, ["resume"], "dashboard"))
        elif isinstance(command, click.Group):
            for word, sub in sorted(command.commands.items()):
                asks = ["--help"] if any(param.required for param in sub.params) else []
                act = partial(_print, app, [name, word, *asks])
                yield SystemCommand(f"{title} {word}", sub.get_short_help_str(90), act)
        else:
            yield SystemCommand(title, about, partial(_print, app, [name]))


def _print(app: GladiusApp, argv: Sequence[str]) -> None:
    from gladius_tui.app.dialogs.choice import Printed

    app.push_screen(Printed(str(app.ws.root), argv))


def _launch(app: GladiusApp, argv: Sequence[str], mode: str) -> None:
    app.action_mode(mode)
    app.launch(argv)


def _ask(app: GladiusApp, name: str) -> None:
    """Send a command to the job that runs, the training job first."""
    from engine.events import Checkpoint, Pause, Stop

    jobs = app.watcher.jobs
    if not jobs:
        app.notify("no job runs here; press 3 to start one", severity="warning", markup=False)
        return
    job = "train" if "train" in jobs else next(iter(jobs))
    kinds = {"pause": Pause, "checkpoint": Checkpoint, "stop": Stop}
    app.ask(job, kinds[name]())
