"""Owns what all six screens share: top bar, body, footer, filter, a summary for tiny sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.content import Content
from textual.events import ScreenResume
from textual.screen import Screen
from textual.widgets import Input, Static
from textual.worker import Worker, WorkerState

from gladius_tui.app.screens.modes import MODES
from gladius_tui.app.widgets.top_bar import KeyBar, TopBar, jobs_content

if TYPE_CHECKING:
    from gladius_tui.app.app import GladiusApp
    from gladius_tui.launch import Ended


class FilterBar(Input):
    """The line below the body into which `/` types; shown while there is something in it."""

    DEFAULT_CSS = """
    FilterBar { display: none; dock: bottom; margin: 0 1; &.-on { display: block; } }
    """

    def __init__(self) -> None:
        super().__init__(placeholder="filter", compact=True, id="filter")


class GladiusScreen(Screen[None]):
    """A mode's screen. Subclasses set MODE and write `compose_body` and `command_line`.

    Classes by size, for TCSS: -w0 (below 60 columns), -w60, -w100, -w160; -h0 (below 16 rows),
    -h16, -h30. At -w0 or -h0 the body is hidden and `summary` stands alone.
    """

    MODE: ClassVar[str] = ""
    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-w0"), (60, "-w60"), (100, "-w100"), (160, "-w160")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-h0"), (16, "-h16"), (30, "-h30")]
    AUTO_FOCUS = ""
    SCOPED_CSS = False
    FILTERS: ClassVar[bool] = False
    """Whether `/` narrows what it shows: then it writes `filter_changed`."""
    BINDINGS: ClassVar = [
        Binding(
            "slash", "filter", "Filter", show=False, tooltip="Show only what holds a text",
            id="app.filter",
        ),
        Binding(
            "escape", "back", "Back", show=False,
            tooltip="Leave the filter, the field, or this screen for the one before",
            id="app.back",
        ),
    ]  # fmt: skip
    DEFAULT_CSS = """
    GladiusScreen {
        #body { height: 1fr; }
        #summary { display: none; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        &.-w0, &.-h0 {
            #body, TopBar, KeyBar, FilterBar { display: none; }
            #summary { display: block; }
        }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        (mode,) = [mode for mode in MODES if mode.name == self.MODE]
        self.title = mode.title
        self._about = mode.about
        self._states: tuple[tuple[str, str], ...] = ()
        """The jobs that ran, and how, when the keys were last looked at."""
        self._styled_as: tuple[str, frozenset[str]] | None = None
        """The app's theme and pseudo-classes when it was last styled."""

    @property
    def gladius(self) -> GladiusApp:
        """The app, with its type."""
        return cast("GladiusApp", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        with Container(id="body"):
            yield from self.compose_body()
        yield Static(id="summary", markup=False)
        if self.FILTERS:
            yield FilterBar()
        yield KeyBar()

    def on_mount(self) -> None:
        self.gladius.opened(self)
        self.job_changed()

    def on_screen_resume(self, event: ScreenResume) -> None:
        look = (self.app.theme, frozenset(self.app.get_pseudo_classes()))
        # Styling all widgets anew is half of what a screen's return takes. What changes a widget
        # of a hidden screen styles it at once; only the app's own look passes such a screen by.
        event.refresh_styles = event.refresh_styles and look != self._styled_as
        self._styled_as = look
        self.job_changed()

    @property
    def composed(self) -> bool:
        """Whether its parts are there. On a quick way out a screen is mounted without them."""
        return self.is_mounted and any(isinstance(child, KeyBar) for child in self.children)

    # What screens write

    def compose_body(self) -> ComposeResult:
        """What stands between the top bar and the footer."""
        yield from ()

    def command_line(self) -> list[str]:
        """The words after `gladius_train` that do what the screen shows (key `y`)."""
        return [self.MODE]

    def about(self) -> str:
        """What the screen is for, in a sentence or two, for its help."""
        return f"{self._about}."

    def summary(self) -> Content:
        """The screen in one line, for terminals below 60x16."""
        jobs = jobs_content(self.gladius.watcher.jobs, self.gladius.state, self.size.width - 10)
        return Content("GLADIUS ").append(jobs)

    def called(self, action: str, name: str) -> str:
        """What the last line calls one of its keys just now; "": it is not shown there."""
        return name

    def launch_begun(self, argv: Sequence[str]) -> None:
        """A command was started (`app.launch`)."""

    def launch_ended(self, ended: Ended) -> bool:
        """A command that the app has started is over (`app.launch`); whether this screen has told
        its error."""
        return False

    def theme_changed(self) -> None:
        """Draw anew what holds colours of the theme (those of TCSS change by themselves)."""

    def filter_changed(self, text: str) -> None:
        """Show only what holds `text`, in lower case; "" shows all."""

    # What they share

    def job_changed(self) -> None:
        """What runs has changed (`app.watcher.jobs`)."""
        states = tuple((job, info.status) for job, info in self.gladius.watcher.jobs.items())
        if states != self._states:
            self._states = states
            self.refresh_bindings()
        if self.composed and self.is_current:
            self.query_one(TopBar).refresh()
            self.query_one("#summary", Static).update(self.summary(), layout=False)

    def on_resize(self) -> None:
        self.job_changed()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.FILTERS if action == "filter" else True

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Work in a thread that fails is a fault of the program: told, never silent."""
        if event.state == WorkerState.ERROR:
            error = event.worker.error
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.notify(f"{text}; a fault of the program", severity="error", markup=False)

    def action_filter(self) -> None:
        bar = self.query_one(FilterBar)
        bar.add_class("-on")
        bar.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        if isinstance(event.input, FilterBar):
            event.stop()
            self.filter_changed(event.value.strip().lower())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if isinstance(event.input, FilterBar):
            event.stop()
            event.input.set_class(bool(event.value.strip()), "-on")
            self.focus_main()

    def action_back(self) -> None:
        if self.FILTERS and (bar := self.query_one(FilterBar)).has_class("-on"):
            bar.value = ""
            bar.remove_class("-on")
            self.focus_main()
        elif isinstance(self.focused, Input):
            self.focus_main()
        else:
            self.gladius.go_back()

    def focus_main(self) -> None:
        """Put the focus where the screen's keys act; by default nowhere."""
        self.set_focus(None)
