"""Owns the Dashboard's parts and where they stand: panes, chart with its legend, the strip of tabs
for narrow terminals. What they say is `panes`' and `charts`'.
"""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from engine.run.view import RunView
from gladius_tui.app.widgets.panes import (
    abilities_pane,
    experts_pane,
    hardware_pane,
    log_pane,
    mfu,
    parameters_pane,
    run_pane,
    sample_pane,
)
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines

Write = Callable[[RunView, int, int, float], Content]


class Pane(PartialRefresh, Static):
    """A bordered box that writes one part of a board, and only when that part has changed."""

    class Sized(Message):
        """A pane has got a size."""

        def __init__(self, pane: Pane) -> None:
            self.pane = pane
            super().__init__()

    def __init__(self, name: str, title: str, shows: set[str], write: Write) -> None:
        super().__init__(id=f"{name}-pane", classes="part side", markup=False)
        self.border_title = title
        self.shows = shows
        """Names of `RunView.changed` that this pane tells of."""
        self._write = write
        self._said: tuple | None = None
        self._rows: list[tuple] = []

    def on_resize(self) -> None:
        self.post_message(self.Sized(self))

    def show(self, board: RunView | None, now: float) -> None:
        """Write the board, if it says anything new."""
        if not self.display or self.size.width < 4:
            return
        width, height = self.size
        content = self._write(board, width, height, now) if board is not None else Content("")
        said = (content.plain, tuple(content.spans), self.size)
        if said != self._said:
            same_size = self._said is not None and self._said[-1] == self.size
            lines = content.split("\n", allow_blank=True)
            rows = [(line.plain, tuple(line.spans)) for line in lines]
            changed = changed_lines(self._rows, rows, width) if same_size else None
            if any(line.cell_length > width for line in lines):
                changed = None  # it is wrapped
            self._said, self._rows = said, rows
            with self.painting(changed or ()):
                self.update(content, layout=False)


class ChartPane(PartialRefresh, Vertical):
    """The chart, its legend in the border. plotext is imported with the first chart."""

    def __init__(self) -> None:
        super().__init__(id="chart-pane", classes="part")
        self.border_title = "Loss"

    def entitle(self, title: Content, subtitle: str) -> None:
        """Say which curves are drawn, and how."""
        text = title.markup
        with self.painting(self.edges()):
            if text != self.border_title:
                self.border_title = text
            if subtitle != self.border_subtitle:
                self.border_subtitle = subtitle


class Tabs(Static):
    """The side panes' names, one of them chosen; shown where there is room for one pane."""

    class Chosen(Message):
        """A name was clicked."""

        def __init__(self, name: str) -> None:
            self.name = name
            super().__init__()

    def __init__(self, names: list[str], chosen: str) -> None:
        super().__init__(id="tabs", markup=False)
        self.names = names
        self.chosen = chosen

    def on_mount(self) -> None:
        self.choose(self.chosen)

    def choose(self, name: str) -> None:
        """Mark a name."""
        self.chosen = name
        parts: list[str | tuple[str, str]] = []
        for one in self.names:
            style = "bold reverse" if one == name else "$foreground 60%"
            parts += [(f" {one.title()} ", style), " "]
        self.update(Content.assemble(*parts), layout=False)

    def next(self, by: int) -> str:
        """The name that is `by` places on."""
        return self.names[(self.names.index(self.chosen) + by) % len(self.names)]

    def on_click(self, event: events.Click) -> None:
        at = 0
        for name in self.names:
            at += len(name) + 3
            if event.x < at:
                self.post_message(self.Chosen(name))
                return


SIDES = ("run", "experts", "abilities", "parameters", "hardware", "sample", "log")


def _run(board: RunView, width: int, height: int, now: float) -> Content:
    return run_pane(board, width, now, mfu(board))


_PANES: dict[str, tuple[str, set[str], Write]] = {
    "run": ("Run", {"run", "step", "eval"}, _run),
    "hardware": ("Hardware", {"hardware"}, lambda b, w, h, _: hardware_pane(b, w, h)),
    "parameters": ("Parameters", {"parameters"}, lambda b, w, h, _: parameters_pane(b, w)),
    "experts": ("Experts", {"experts"}, lambda b, w, h, _: experts_pane(b, w, h)),
    "abilities": ("Abilities", {"capabilities"}, lambda b, w, h, _: abilities_pane(b, w, h)),
    "able": ("Abilities", {"capabilities"}, lambda b, w, h, _: abilities_pane(b, w, h)),
    "sample": ("Sample", {"sample"}, lambda b, w, h, _: sample_pane(b)),
    "log": ("Log", {"log"}, lambda b, w, h, _: log_pane(b, w, h)),
}


def pane(name: str) -> Pane:
    """One of SIDES."""
    return Pane(name, *_PANES[name])


class Panes(Container):
    """All parts: a grid where there is room, else the chart above one pane at a time."""

    _grid: str | None = None
    """Heights of the grid's rows while the abilities stand below the hardware."""

    def compose(self) -> ComposeResult:
        yield Tabs(list(SIDES), "run")
        yield pane("run")
        yield ChartPane()
        for name in ("hardware", "able", "parameters", "experts", "sample", "log", "abilities"):
            yield pane(name)

    def on_mount(self) -> None:
        self.choose("run")

    def make_room(self, board: RunView | None) -> None:
        """In the grid, the abilities stand below the hardware where both have room, else a key
        puts them into the log's place."""
        rows = len(board.best_capabilities) if board is not None else 0
        gpus = len(board.hardware.gpus) if board is not None and board.hardware else 0
        width, height = self.size
        low, bottom = (9, 10) if width >= 160 else (8, 7)
        able = rows and width >= 100 and height - low - bottom - (rows + 3) >= 8 + 3 * gpus
        grid = f"1fr {rows + 3} {low} {bottom}" if able else None
        if grid != self._grid:
            self._grid = grid
            self.set_class(grid is not None, "-able")
            self.styles.grid_rows = grid

    def choose(self, name: str) -> None:
        """Show this pane where only one has room."""
        self.query_one(Tabs).choose(name)
        for one in self.query(Pane):
            one.set_class(one.id == f"{name}-pane", "-chosen")

    def on_tabs_chosen(self, message: Tabs.Chosen) -> None:
        self.choose(message.name)
