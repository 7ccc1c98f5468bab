"""The app's part that starts jobs, watches them, and passes their outcome to the screens."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from textual import work
from textual.app import App
from textual.message import Message

from engine.workspace import Workspace
from gladius_tui.app.job_messages import CommandAnswered, JobsChanged
from gladius_tui.app.model.texts import without_root
from gladius_tui.app.services import ModeScreen
from gladius_tui.app.watch import JobWatcher

if TYPE_CHECKING:
    import click

    from engine.events import AnyCommand, Job
    from engine.run.state import RunState
    from gladius_tui.launch import Ended

NO_COMMANDS: Mapping[str, click.Command] = MappingProxyType({})


@dataclass(eq=False)
class LaunchEnded(Message, bubble=False):
    """A command that the app started has exited."""

    ended: Ended


@dataclass(eq=False)
class StateRead(Message, bubble=False):
    """training_state.json was read."""

    state: RunState


class JobsApp(App[int]):
    """An app that launches and watches the jobs of one root. See `AppServices`."""

    def __init__(
        self,
        ws: Workspace,
        launch: Sequence[str] = (),
        commands: Mapping[str, click.Command] = NO_COMMANDS,
    ) -> None:
        super().__init__()
        self.ws = ws
        self.watcher = JobWatcher(ws, self)
        self.state: RunState | None = None
        self.screens: dict[str, ModeScreen] = {}
        """The mounted screens, by mode."""
        self.launched: list[tuple[str, ...]] = []
        self.opened_with = tuple(launch)
        self.commands = commands
        self.jobs_seen: set[Job] = set()
        """Jobs that ran while the app was open."""

    def start_watching(self) -> None:
        """Watch the root's jobs, and start the command that the app was opened with."""
        self.watcher.start()
        self.read_state()
        if self.opened_with:
            self.launch(self.opened_with)

    def register_screen(self, screen: ModeScreen) -> None:
        """A mode's screen was mounted."""
        self.screens[screen.MODE] = screen

    def on_jobs_changed(self, _: JobsChanged) -> None:
        self.jobs_seen |= set(self.watcher.jobs)
        if not self.watcher.jobs:
            self.read_state()
        for screen in self.screens.values():
            screen.jobs_changed()

    @work(thread=True, exclusive=True, group="state", exit_on_error=False)
    def read_state(self) -> None:
        """Read the training run's state, for the top bar."""
        from engine.run.state import read_state

        self.post_message(StateRead(read_state(self.ws)))

    def on_state_read(self, message: StateRead) -> None:
        self.state = message.state
        for screen in self.screens.values():
            screen.jobs_changed()

    def launch(self, argv: Sequence[str]) -> bool:
        """Start `gladius_train ARGV` in a process of its own; False (and a notification) if that
        failed.

        When it exits, `launch_ended` is called on all screens; its job's events come from the
        watcher.
        """
        from gladius_tui.launch import launch

        def on_end(ended: Ended) -> None:
            self.post_message(LaunchEnded(ended))

        try:
            launch(self.ws, argv, on_end)
        except OSError as error:
            text = f"can't start gladius_train {argv[0]}: {error}"
            self.notify(text, severity="error", markup=False)
            return False
        self.launched.append(tuple(argv))
        for screen in self.screens.values():
            screen.launch_begun(argv)
        self.watcher.scan_now()
        return True

    def on_launch_ended(self, message: LaunchEnded) -> None:
        ended = message.ended
        with contextlib.suppress(ValueError):
            self.launched.remove(ended.argv)
        shown = False
        for mode, screen in self.screens.items():
            shown |= screen.launch_ended(ended) and mode == self.current_mode
        if ended.error and not shown:
            title = f"gladius_train {ended.argv[0]}"
            text = without_root(ended.error, self.ws.root)
            self.notify(text, title=title, severity="error", timeout=30, markup=False)

    def send_command(self, job: Job, command: AnyCommand) -> None:
        """Send a command to a running job; its answer is shown as a notification."""
        self.watcher.send(self, job, command)

    def on_command_answered(self, message: CommandAnswered) -> None:
        from engine.events import describe

        if message.event is None:
            self.notify(message.error, severity="error", markup=False)
        else:
            self.notify(describe(message.event) or "", title=message.job, markup=False)
