"""The app's keys that work on every screen: modes, help, palette, screenshot, quit."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import SystemCommand
from textual.binding import Binding
from textual.screen import Screen

from engine.workspace import Workspace
from gladius_tui.app.exit_summary import shell_command
from gladius_tui.app.jobs import NO_COMMANDS, JobsApp
from gladius_tui.app.model.modes import MODES
from gladius_tui.app.screens.base import GladiusScreen

if TYPE_CHECKING:
    import click

_QUIT = "Quit. A running job keeps running unless you choose to stop it"


class KeysApp(JobsApp):
    """An app with the keys that work everywhere. `mode` is shown first."""

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
            for mode in MODES
        ),
        Binding(
            "y", "copy_command", "Copy command", show=False, id="app.copy",
            tooltip="Copy the command line that does what this screen shows",
        ),
        Binding("f8", "screenshot_svg", "Screenshot", show=False, id="app.picture",
                tooltip="Save an SVG screenshot"),
        Binding("question_mark", "help", "Help", tooltip="All keys of this screen", id="app.help"),
        # While a field has the focus, `?` and `q` are letters.
        Binding("f1", "help", "Help", tooltip="All keys of this screen", id="app.help_anywhere"),
        Binding("q", "leave", "Quit", id="app.quit", tooltip=_QUIT),
        Binding("ctrl+q", "leave", "Quit", priority=True, id="app.quit_anywhere", tooltip=_QUIT),
        Binding(
            "ctrl+c", "leave(True)", "Stop and quit", show=False, priority=True, id="app.interrupt",
            tooltip="Quit, with “Stop with a checkpoint” selected; press again to confirm",
        ),
    ]  # fmt: skip

    def __init__(
        self,
        ws: Workspace,
        mode: str,
        launch: Sequence[str] = (),
        commands: Mapping[str, click.Command] = NO_COMMANDS,
    ) -> None:
        super().__init__(ws, launch, commands)
        self.first_mode = mode
        self._delays_updates = True

    def action_mode(self, mode: str) -> None:
        """Show a mode."""
        if mode != self.current_mode and not self.screen.is_modal:
            self._delays_updates = mode not in self.screens
            self.switch_mode(mode)
            self._delays_updates = True

    def delay_update(self, delay: float = 0.05) -> None:
        """Textual paints nothing for this long after a change of mode, to hide a half-mounted
        screen; a screen that was shown before is complete, and is painted at once."""
        if self._delays_updates:
            super().delay_update(delay)

    def action_copy_command(self) -> None:
        if isinstance(screen := self.screen, GladiusScreen):
            line = shell_command(self.ws, *screen.command_line())
            self.copy_to_clipboard(line)
            self.notify(line, title="Copied", markup=False)

    def action_screenshot_svg(self) -> None:
        """Save the screen as an SVG file in tmp/pictures."""
        folder = self.ws.tmp / "pictures"
        name = f"{self.current_mode}-{time.strftime('%Y%m%d-%H%M%S')}.svg"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = self.save_screenshot(filename=name, path=str(folder))
        except OSError as error:
            self.notify(f"can't save the screenshot: {error}", severity="error", markup=False)
            return
        shown = Path(path).relative_to(self.ws.root)
        self.notify(str(shown), title="Screenshot saved", markup=False)

    def action_help(self) -> None:
        if isinstance(screen := self.screen, GladiusScreen):
            from gladius_tui.app.dialogs.help import Help

            self.push_screen(Help(screen, screen.about(), screen.active_bindings.values()))

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        from gladius_tui.app.palette import palette_commands

        yield from palette_commands(self, self, screen)

    def action_leave(self, stop: bool = False) -> None:
        """Quit; while jobs run, ask whether to stop them."""
        from gladius_tui.app.dialogs.leave import Leave

        screen = self.screen
        if isinstance(screen, Leave):
            screen.key_again(stop)
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
