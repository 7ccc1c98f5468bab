"""What a mode's screen may override."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.screen import Screen

if TYPE_CHECKING:
    from gladius_tui.launch import Ended


class ScreenHooks(Screen[None]):
    """The methods that a mode's screen may override, with their defaults."""

    MODE: ClassVar[str] = ""
    FILTERS: ClassVar[bool] = False
    """Whether `/` filters what it shows; then it overrides `filter_changed`."""

    def compose_body(self) -> ComposeResult:
        """The widgets between the top bar and the key bar."""
        yield from ()

    def command_line(self) -> list[str]:
        """The words after `gladius_train` that do what the screen shows (key `y`)."""
        return [self.MODE]

    def key_label(self, action: str, label: str) -> str:
        """The key bar's label for a key at this moment; "" hides it."""
        return label

    def launch_begun(self, argv: Sequence[str]) -> None:
        """The app has started a command."""

    def launch_ended(self, ended: Ended) -> bool:
        """A command that the app started has exited; True if this screen shows its error."""
        return False

    def theme_changed(self) -> None:
        """Redraw content that holds colours of the theme; TCSS colours change by themselves."""

    def filter_changed(self, text: str) -> None:
        """Show only what contains `text`, which is in lower case; "" shows all."""

    def focus_main(self) -> None:
        """Focus the widget on which the screen's keys act; none by default."""
        self.set_focus(None)
