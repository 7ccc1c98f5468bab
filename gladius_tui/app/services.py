"""What screens, widgets and dialogs use of the app, as protocols: they don't import the app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

from textual.dom import DOMNode

if TYPE_CHECKING:
    import click

    from engine.events import AnyCommand, Job
    from engine.run.state import RunState
    from engine.workspace import Workspace
    from gladius_tui.app.watch import JobWatcher
    from gladius_tui.launch import Ended


class ModeScreen(Protocol):
    """What the app and its widgets use of a mode's screen."""

    MODE: ClassVar[str]

    def jobs_changed(self) -> None:
        """The running jobs (`AppServices.watcher.jobs`) have changed."""

    def launch_begun(self, argv: Sequence[str]) -> None:
        """The app has started a command."""

    def launch_ended(self, ended: Ended) -> bool:
        """A command that the app started has exited; True if this screen shows its error."""
        ...

    def theme_changed(self) -> None:
        """Redraw content that holds colours of the theme."""

    def key_label(self, action: str, label: str) -> str:
        """The footer's label for a key; "" hides it."""
        ...


class AppServices(Protocol):
    """What screens, widgets and dialogs use of the app."""

    ws: Workspace
    watcher: JobWatcher
    state: RunState | None
    """The training run's state, as read from its file when nothing ran; None before that."""
    launched: list[tuple[str, ...]]
    """Commands that the app started and that have not exited yet."""
    opened_with: tuple[str, ...]
    """The command that opened the app; empty for none."""
    commands: Mapping[str, click.Command]
    """The commands of `gladius_train`, by name."""

    def register_screen(self, screen: ModeScreen) -> None:
        """A mode's screen was mounted."""

    def launch(self, argv: Sequence[str]) -> bool:
        """Start `gladius_train ARGV` in a process of its own; False if that failed."""
        ...

    def send_command(self, job: Job, command: AnyCommand) -> None:
        """Send a command to a running job; its answer is shown as a notification."""

    def action_mode(self, mode: str) -> None:
        """Show a mode."""


def services(node: DOMNode) -> AppServices:
    """The app that a screen or widget belongs to."""
    return cast(AppServices, node.app)
