"""The full-screen app: a screen for each mode, over the jobs of one root.

The app starts jobs as separate processes and watches them; it never does their work, and imports
neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.filter import LineFilter
from textual.screen import Screen
from textual.theme import Theme

from engine.workspace import Workspace
from gladius_tui.app.exit_summary import exit_summary
from gladius_tui.app.jobs import NO_COMMANDS
from gladius_tui.app.keys import KeysApp
from gladius_tui.app.line_filter import PrintableLines
from gladius_tui.app.model.modes import MODES, Mode
from gladius_tui.app.screens.cover import Cover
from gladius_tui.app.settings import load_settings, save_theme
from gladius_tui.app.terminal_guard import HUNG_UP, TerminalGuard
from gladius_tui.app.theme import THEMES, chart_defaults

if TYPE_CHECKING:
    import click


def _make_screen(mode: Mode) -> Screen:
    """Import and make a mode's screen, when it is first shown."""
    module = import_module(f"gladius_tui.app.screens.{mode.name}")
    return getattr(module, f"{mode.title}Screen")()


class GladiusApp(KeysApp):
    """The app on one root.

    Args:
        ws: the root.
        mode: the mode that is shown first.
        launch: a command to start at once; empty for none.
        commands: the commands of `gladius_train` by name, for the palette and the Train form.
    """

    TITLE = "GLADIUS"
    CSS_PATH: ClassVar = ["app.tcss", "screens/base.tcss"]
    MODES: ClassVar = {mode.name: partial(_make_screen, mode) for mode in MODES}

    def __init__(
        self,
        ws: Workspace,
        mode: str = "dashboard",
        launch: Sequence[str] = (),
        commands: Mapping[str, click.Command] = NO_COMMANDS,
    ) -> None:
        self._settings = load_settings()
        self._printable_lines = PrintableLines()
        super().__init__(ws, mode, launch, commands)
        self._terminal_guard = TerminalGuard(self)
        for theme in THEMES:
            self.register_theme(theme)
        if self._settings.theme in self.available_themes:
            self.theme = self._settings.theme
        self.set_keymap(self._settings.keys)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return chart_defaults(self.current_theme.dark)

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._printable_lines]

    def _fatal_error(self) -> None:
        """End after an exception without printing it: `run_app` raises it again."""
        self._close_messages_no_wait()

    def get_default_screen(self) -> Screen:
        return Cover(self.first_mode)

    def on_mount(self) -> None:
        if self._settings.error:
            self.notify(self._settings.error, severity="warning", markup=False)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self._terminal_guard.start()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """Do what would delay the first paint."""
        self.switch_mode(self.first_mode)
        self.start_watching()

    def on_unmount(self) -> None:
        self.watcher.stop()
        self._terminal_guard.stop()

    def _theme_changed(self, theme: Theme) -> None:
        for screen in self.screens.values():
            screen.theme_changed()
        self._save_theme(theme.name)

    @work(thread=True, exclusive=True, group="settings", exit_on_error=False)
    def _save_theme(self, theme: str) -> None:
        with contextlib.suppress(OSError):  # a read-only home: the theme lasts for this session
            save_theme(theme)


def run_app(
    ws: Workspace,
    mode: str = "",
    launch: Sequence[str] = (),
    commands: Mapping[str, click.Command] = NO_COMMANDS,
) -> int:
    """Run the app in this terminal; returns the exit code.

    Without a mode it opens at the Dashboard if the root has a run, else at Models. An exception
    that ended the app is raised once the terminal is restored.
    """
    if not mode:
        mode = "dashboard" if ws.state_file.exists() or ws.history_file.exists() else "models"
    # Charts are drawn and histories read in threads; with a shorter switch interval a key does not
    # wait five milliseconds each time the screen's thread wants its turn.
    sys.setswitchinterval(0.0005)
    app = GladiusApp(ws, mode, launch, commands)
    code = app.run() or app.return_code or 0
    if app._exception is not None:
        raise app._exception
    if code != HUNG_UP:
        from gladius_tui.terminal import print_lines

        print_lines(exit_summary(ws, app.jobs_seen), sys.stderr)
    return code
