"""Owns the app: its modes, the keys that hold everywhere, and its way out.

It starts jobs as processes of their own and watches them (`watch`); it never does their work, and
imports neither torch nor transformers.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.message import Message
from textual.screen import Screen
from textual.theme import Theme

from engine.workspace import Workspace
from gladius_tui.app.exit_summary import command, farewell
from gladius_tui.app.screens import modes
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.settings import load_settings, remember_theme
from gladius_tui.app.theme import THEMES, chart_defaults
from gladius_tui.app.watch import CommandAnswered, JobsChanged, JobWatcher
from gladius_tui.app.widgets.top_bar import Cover

if TYPE_CHECKING:
    from engine.events import AnyCommand, Job
    from engine.run.state import RunState
    from gladius_tui.launch import Ended

_TERMINATED = 128 + signal.SIGTERM
_HUNG_UP = 128 + signal.SIGHUP
_LOOK_SECONDS = 1.0
"""After which it is looked whether the terminal is still there."""


class LaunchEnded(Message, bubble=False):
    """A command that was launched is over."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        super().__init__()


class StateRead(Message, bubble=False):
    """training_state.json was read."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        super().__init__()


class GladiusApp(App[int]):
    """The app on one root. `mode` is shown first; `launch` is a command to start at once."""

    TITLE = "GLADIUS"
    CSS_PATH = "app.tcss"
    MODES: ClassVar = {mode.name: mode.screen for mode in modes.MODES}
    BINDINGS: ClassVar = [
        *(
            Binding(
                f"{mode.key},{mode.function_key}",
                f"app.mode('{mode.name}')",
                mode.title,
                show=False,
                tooltip=mode.about,
                id=f"mode.{mode.name}",
            )
            for mode in modes.MODES
        ),
        Binding(
            "y", "copy_command", "Copy command", show=False, id="app.copy",
            tooltip="Copy the command line that does what this screen shows",
        ),
        Binding("f8", "picture", "Picture", show=False, tooltip="Save an SVG of the screen",
                id="app.picture"),
        Binding("question_mark", "help", "Help", tooltip="All keys of this screen", id="app.help"),
        # While something is typed, `?` and `q` are letters.
        Binding("f1", "help", "Help", tooltip="All keys of this screen", id="app.help_anywhere"),
        Binding(
            "q", "leave", "Quit", id="app.quit",
            tooltip="Leave; asks what becomes of a running job, which goes on unless you say so",
        ),
        Binding(
            "ctrl+q", "leave", "Quit", priority=True, id="app.quit_anywhere",
            tooltip="Leave; asks what becomes of a running job, which goes on unless you say so",
        ),
        Binding(
            "ctrl+c", "leave(True)", "Stop and quit", show=False, priority=True, id="app.interrupt",
            tooltip="The same, with `stop with a checkpoint` chosen; again: yes",
        ),
    ]  # fmt: skip

    def __init__(self, ws: Workspace, mode: str = "dashboard", launch: Sequence[str] = ()) -> None:
        self._settings = load_settings()
        super().__init__()
        self.ws = ws
        self.watcher = JobWatcher(ws, self)
        self.state: RunState | None = None
        """Where the training run stands, as its file said when nothing ran."""
        self.screens: dict[str, GladiusScreen] = {}
        """By mode: the screens that were opened."""
        self.launched: list[tuple[str, ...]] = []
        """Commands that were started here and are not over yet."""
        self.opened_with = tuple(launch)
        """The command that opened the app, and that it begins with; empty for none."""
        self.seen: set[Job] = set()
        """Jobs that ran while this was open."""
        self._first = self._before = mode
        self._masks = True
        for theme in THEMES:
            self.register_theme(theme)
        if self._settings.theme in self.available_themes:
            self.theme = self._settings.theme
        self.set_keymap(self._settings.keys)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return chart_defaults(self.current_theme.dark)

    def get_default_screen(self) -> Screen:
        return Cover(self._first)

    def on_mount(self) -> None:
        if self._settings.trouble:
            self.notify(self._settings.trouble, severity="warning", markup=False)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self._catch_signals()
        self._watch_terminal()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """After the first paint: what would delay it."""
        self.switch_mode(self._first)
        self.watcher.start()
        self.read_state()
        if self.opened_with:
            self.launch(self.opened_with)

    def on_unmount(self) -> None:
        self.watcher.stop()
        self._release_signals()

    # Jobs

    def opened(self, screen: GladiusScreen) -> None:
        """A mode's screen is there now."""
        self.screens[screen.MODE] = screen

    def on_jobs_changed(self, _: JobsChanged) -> None:
        self.seen |= set(self.watcher.jobs)
        if not self.watcher.jobs:
            self.read_state()
        for screen in self.screens.values():
            screen.job_changed()

    @work(thread=True, exclusive=True, group="state", exit_on_error=False)
    def read_state(self) -> None:
        """Read where the training run stands, for the line at the top."""
        from engine.run.state import read_state

        self.post_message(StateRead(read_state(self.ws)))

    def on_state_read(self, message: StateRead) -> None:
        self.state = message.state
        for screen in self.screens.values():
            screen.job_changed()

    def launch(self, argv: Sequence[str]) -> bool:
        """Start `gladius_train ARGV` as a process of its own; False (told) when it can't be.

        When it is over, all screens get `launch_ended`; what its job does comes by the watcher.
        """
        from gladius_tui.launch import launch

        def on_end(ended: Ended) -> None:
            self.post_message(LaunchEnded(ended))

        try:
            launch(self.ws, argv, on_end)
        except OSError as error:
            self.notify(f"can't start it: {error}", severity="error", markup=False)
            return False
        self.launched.append(tuple(argv))
        for screen in self.screens.values():
            screen.launch_begun(argv)
        self.watcher.look()
        return True

    def on_launch_ended(self, message: LaunchEnded) -> None:
        ended = message.ended
        with contextlib.suppress(ValueError):
            self.launched.remove(ended.argv)
        told = False
        for mode, screen in self.screens.items():
            told |= screen.launch_ended(ended) and mode == self.current_mode
        if ended.error and not told:
            title = f"gladius_train {ended.argv[0]}"
            self.notify(ended.error, title=title, severity="error", timeout=30, markup=False)

    def ask(self, job: Job, command: AnyCommand) -> None:
        """Send a command to a running job; the answer is shown when it comes."""
        self.watcher.ask(self, job, command)

    def on_command_answered(self, message: CommandAnswered) -> None:
        from engine.events import describe

        if message.event is None:
            self.notify(message.error, severity="error", markup=False)
        else:
            self.notify(describe(message.event) or "", title=message.job, markup=False)

    # Keys that hold everywhere

    def action_mode(self, mode: str) -> None:
        """Show a mode."""
        if mode != self.current_mode and not self.screen.is_modal:
            self._before = self.current_mode
            self._masks = mode not in self.screens
            self.switch_mode(mode)
            self._masks = True

    def delay_update(self, delay: float = 0.05) -> None:
        """The toolkit shows nothing for this long when a mode changes, lest a screen be seen half
        made; one that was shown before is whole, and is painted at once."""
        if self._masks:
            super().delay_update(delay)

    def go_back(self) -> None:
        """Show the mode that was shown before."""
        self.action_mode(self._before)

    def action_copy_command(self) -> None:
        if isinstance(screen := self.screen, GladiusScreen):
            line = command(self.ws, *screen.command_line())
            self.copy_to_clipboard(line)
            self.notify(line, title="Copied", markup=False)

    def action_picture(self) -> None:
        """Save what is seen as SVG."""
        folder = self.ws.tmp / "pictures"
        name = f"{self.current_mode}-{time.strftime('%Y%m%d-%H%M%S')}.svg"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = self.save_screenshot(filename=name, path=str(folder))
        except OSError as error:
            self.notify(f"no picture: {error}", severity="error", markup=False)
            return
        self.notify(path, title="Picture saved", markup=False)

    def action_help(self) -> None:
        if isinstance(screen := self.screen, GladiusScreen):
            from gladius_tui.app.dialogs.help import Help

            self.push_screen(Help(screen, screen.active_bindings.values()))

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        from gladius_tui.app.palette import commands

        yield from commands(self, screen)

    def _theme_changed(self, theme: Theme) -> None:
        for screen in self.screens.values():
            screen.theme_changed()
        self._remember(theme.name)

    def _remember(self, theme: str) -> None:
        @work(thread=True, exclusive=True, group="settings", exit_on_error=False)
        def write(app: GladiusApp) -> None:
            with contextlib.suppress(OSError):  # a read-only home: chosen anew next time
                remember_theme(theme)

        write(self)

    # The way out

    def action_leave(self, stop: bool = False) -> None:
        """Leave; with jobs running, ask what becomes of them."""
        from gladius_tui.app.dialogs.leave import Leave

        screen = self.screen
        if isinstance(screen, Leave):
            screen.again(stop)
            return
        if stop and (text := screen.get_selected_text()):
            self.copy_to_clipboard(text)
            return
        if self.watcher.jobs or self.launched:
            self.push_screen(Leave(stop))
        else:
            self.exit(0)

    async def action_quit(self) -> None:
        self.action_leave()

    def _catch_signals(self) -> None:
        """SIGTERM and SIGHUP end the app in order, so that the terminal is left sane."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(signal.SIGTERM, self.exit, _TERMINATED)
            loop.add_signal_handler(signal.SIGHUP, self.exit, _HUNG_UP)

    def _watch_terminal(self) -> None:
        """A terminal that is gone ends the app, also where no signal tells of it (a lost ssh
        connection under nohup, a pty that controls nobody): reading from it would spin."""
        import select

        if self.is_headless or sys.__stdin__ is None or not sys.__stdin__.isatty():
            return
        terminal = select.poll()
        terminal.register(sys.__stdin__.fileno(), select.POLLHUP)

        def look() -> None:
            if any(event & (select.POLLHUP | select.POLLERR) for _, event in terminal.poll(0)):
                self.exit(_HUNG_UP)

        self.set_interval(_LOOK_SECONDS, look)

    def _release_signals(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGHUP)


def run_app(ws: Workspace, mode: str = "", launch: Sequence[str] = ()) -> int:
    """Run the app in this terminal; returns the exit code.

    Without a mode it opens at the Dashboard where there is a run to see, else at the models.
    """
    if not mode:
        mode = "dashboard" if ws.state_file.exists() or ws.history_file.exists() else "models"
    # Charts are drawn and histories read in threads: a key does not wait five milliseconds each
    # time that the screen's thread wants its turn.
    sys.setswitchinterval(0.0005)
    app = GladiusApp(ws, mode, launch)
    code = app.run() or 0
    if code != _HUNG_UP:
        from gladius_tui.headless import print_lines

        print_lines(farewell(ws, app.seen), sys.stderr)
    return code
