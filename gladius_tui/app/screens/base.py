"""What all six screens share: top bar, body, key bar, filter, and a summary for tiny terminals."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.content import Content
from textual.events import ScreenResume
from textual.widgets import Input, Static
from textual.worker import Worker, WorkerState

from gladius_tui.app.model.job_status import jobs_content
from gladius_tui.app.model.modes import MODES
from gladius_tui.app.screens.hooks import ScreenHooks
from gladius_tui.app.services import AppServices, services
from gladius_tui.app.widgets.filter_bar import FilterBar
from gladius_tui.app.widgets.key_bar import KeyBar
from gladius_tui.app.widgets.top_bar import TopBar


class FilterKeys(ScreenHooks):
    """The keys `/` and escape: filter what is shown, leave the filter or a field."""

    BINDINGS: ClassVar = [
        Binding(
            "slash", "filter", "Filter", show=False, tooltip="Show only what contains a text",
            id="app.filter",
        ),
        Binding(
            "escape", "back", "Back", show=False, id="app.back",
            tooltip="Leave the filter or the field",
        ),
    ]  # fmt: skip

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.FILTERS if action == "filter" else True

    @property
    def filter_shown(self) -> bool:
        """Whether the filter's field is shown."""
        return self.FILTERS and self.query_one(FilterBar).has_class("-on")

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
        if self.filter_shown:
            bar = self.query_one(FilterBar)
            bar.value = ""
            bar.remove_class("-on")
            self.focus_main()
        else:
            self.focus_main()


class GladiusScreen(FilterKeys):
    """A mode's screen. Subclasses set MODE and override methods of `ScreenHooks`.

    Classes by size, for TCSS: -w0 (below 60 columns), -w60, -w100, -w160; -h0 (below 16 rows),
    -h16, -h30. At -w0 or -h0 the body is hidden and only `summary` is shown.
    """

    HORIZONTAL_BREAKPOINTS: ClassVar = [(0, "-w0"), (60, "-w60"), (100, "-w100"), (160, "-w160")]
    VERTICAL_BREAKPOINTS: ClassVar = [(0, "-h0"), (16, "-h16"), (30, "-h30")]
    AUTO_FOCUS = ""
    SCOPED_CSS = False

    def __init__(self) -> None:
        super().__init__()
        (mode,) = [mode for mode in MODES if mode.name == self.MODE]
        self.title = mode.title
        self._about = mode.about
        self._job_states: tuple[tuple[str, str], ...] = ()
        """The running jobs and their status at the last refresh of the bindings."""
        self._styled_for: tuple[str, frozenset[str]] | None = None
        """The app's theme and pseudo-classes when the screen was last styled."""

    @property
    def gladius(self) -> AppServices:
        """The app."""
        return services(self)

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        with Container(id="body"):
            yield from self.compose_body()
        yield Static(id="summary", markup=False)
        if self.FILTERS:
            yield FilterBar()
        yield KeyBar()

    def on_mount(self) -> None:
        self.gladius.register_screen(self)
        self.jobs_changed()

    def on_screen_resume(self, event: ScreenResume) -> None:
        look = (self.app.theme, frozenset(self.app.get_pseudo_classes()))
        # Restyling all widgets takes half of a screen's return. A change to a widget of a hidden
        # screen styles that widget at once; only the app's own look does not reach such a screen.
        event.refresh_styles = event.refresh_styles and look != self._styled_for
        self._styled_for = look
        self.jobs_changed()

    def on_resize(self) -> None:
        self.jobs_changed()

    @property
    def composed(self) -> bool:
        """Whether its widgets exist. An app that exits early mounts a screen without them."""
        return self.is_mounted and any(isinstance(child, KeyBar) for child in self.children)

    def about(self) -> str:
        """What the screen is for, in a sentence or two, for its help."""
        return f"{self._about}."

    def summary(self) -> Content:
        """The screen in one line, for terminals below 60x16."""
        jobs = jobs_content(self.gladius.watcher.jobs, self.gladius.state, self.size.width - 10)
        return Content("GLADIUS ").append(jobs)

    def jobs_changed(self) -> None:
        """The running jobs (`app.watcher.jobs`) or the training run's state have changed."""
        states = tuple((job, info.status) for job, info in self.gladius.watcher.jobs.items())
        if states != self._job_states:
            self._job_states = states
            self.refresh_bindings()
        if self.composed and self.is_current:
            self.query_one(TopBar).refresh()
            self.query_one("#summary", Static).update(self.summary(), layout=False)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """An exception in a thread is a bug; show it."""
        if event.state == WorkerState.ERROR:
            error = event.worker.error
            text = " ".join(f"{type(error).__name__}: {error}".split())
            self.notify(f"{text} (a bug in gladius)", severity="error", markup=False)
