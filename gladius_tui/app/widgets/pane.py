"""A bordered box of the Dashboard that shows one part of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from engine.run.view import RunView
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines

PaneText = Callable[[RunView, int, int, float], Content]
"""Makes the text of a pane from a run, width, height and Unix time."""


@dataclass(frozen=True)
class PaneSpec:
    """What a pane shows."""

    name: str
    title: str
    shows: frozenset[str]
    """The names in `RunView.changed` that this pane depends on."""
    text: PaneText


class Pane(PartialRefresh, Static):
    """A box that is redrawn only when its text or size has changed."""

    @dataclass(eq=False)
    class Resized(Message):
        """A pane has got another size, or its first one."""

        pane: Pane

    def __init__(self, spec: PaneSpec) -> None:
        super().__init__(id=f"{spec.name}-pane", classes="dashboard-pane side", markup=False)
        self.border_title = spec.title
        self.shows = spec.shows
        self._text = spec.text
        self._drawn: tuple | None = None
        self._rows: list[tuple] = []

    def on_resize(self) -> None:
        self.post_message(self.Resized(self))

    def show(self, run: RunView | None, now: float) -> None:
        """Show the run; `now` is Unix time."""
        if not self.display or self.size.width < 4:
            return
        width, height = self.size
        content = self._text(run, width, height, now) if run is not None else Content("")
        drawn = (content.plain, tuple(content.spans), self.size)
        if drawn == self._drawn:
            return
        same_size = self._drawn is not None and self._drawn[-1] == self.size
        lines = content.split("\n", allow_blank=True)
        rows = [(line.plain, tuple(line.spans)) for line in lines]
        changed = changed_lines(self._rows, rows, width) if same_size else None
        if any(line.cell_length > width for line in lines):
            changed = None  # the line is wrapped, so rows are not lines of the screen
        self._drawn, self._rows = drawn, rows
        with self.painting(changed or ()):
            self.update(content, layout=False)
