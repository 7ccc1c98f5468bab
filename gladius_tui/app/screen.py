"""Owns what all six screens share: top bar, body, footer, a one-line summary where it is tiny."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Footer, Static

from gladius_tui.app.topbar import TopBar

if TYPE_CHECKING:
    from gladius_tui.app.app import GladiusApp


class GladiusScreen(Screen[None]):
    """A mode's screen. Subclasses set MODE and write `compose_body` and `command_line`.

    Classes by size, for TCSS: -w0 (below 60 columns), -w60, -w100, -w160; -h0 (below 16 rows),
    -h16, -h30. At -w0 or -h0 the body is hidden and `summary` stands alone.
    """

    MODE: ClassVar[str] = ""
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-w0"), (60, "-w60"), (100, "-w100"), (160, "-w160")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-h0"), (16, "-h16"), (30, "-h30")]
    AUTO_FOCUS = ""
    DEFAULT_CSS = """
    GladiusScreen {
        #body { height: 1fr; }
        #summary { display: none; }
        &.-w0, &.-h0 {
            #body, TopBar, Footer { display: none; }
            #summary { display: block; }
        }
    }
    """

    @property
    def gladius(self) -> GladiusApp:
        """The app, with its type."""
        return cast("GladiusApp", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        with Container(id="body"):
            yield from self.compose_body()
        yield Static(id="summary")
        yield Footer()

    def compose_body(self) -> ComposeResult:
        """What stands between the top bar and the footer."""
        yield from ()

    def command_line(self) -> list[str]:
        """The words after `gladius_train` that do what the screen shows (key `y`)."""
        return []

    def summary(self) -> str:
        """The screen in one line, for terminals below 60x16."""
        return self.gladius.job_line()

    def job_changed(self) -> None:
        """What runs has changed (`app.watcher.jobs`); screens may override, and call this."""
        self.query_one(TopBar).show_jobs()
        self.query_one("#summary", Static).update(self.summary())
