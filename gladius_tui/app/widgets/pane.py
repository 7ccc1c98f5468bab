"""A bordered box of the Dashboard that shows one part of a run; it scrolls if its text is long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding
from textual.content import Content
from textual.events import MouseScrollDown, MouseScrollUp
from textual.message import Message
from textual.widgets import Static

from engine.run.view import RunView
from gladius_tui.app.widgets.partial_refresh import PartialRefresh, changed_lines

PaneText = Callable[[RunView, int, int, float], Content]
"""Makes the text of a pane from a run, width, height and Unix time."""

_FAR = 1_000_000


@dataclass(frozen=True)
class PaneSpec:
    """What a pane shows."""

    name: str
    title: str
    shows: frozenset[str]
    """The names in `RunView.changed` that this pane depends on."""
    text: PaneText


class Pane(PartialRefresh, Static, can_focus=True):
    """A box that is redrawn only when its text or size has changed."""

    BINDINGS: ClassVar = [
        Binding("up", "scroll_lines(-1)", "Scroll", show=False, id="pane.up",
                tooltip="Scroll the pane"),
        Binding("down", "scroll_lines(1)", "Scroll", show=False, id="pane.down",
                tooltip="Scroll the pane"),
        Binding("pageup", "scroll_pages(-1)", "Page up", show=False, id="pane.page_up",
                tooltip="Scroll the pane by its height"),
        Binding("pagedown", "scroll_pages(1)", "Page down", show=False, id="pane.page_down",
                tooltip="Scroll the pane by its height"),
        Binding("home", "scroll_lines(-1000000)", "First line", show=False, id="pane.home",
                tooltip="The first line"),
        Binding("end", "scroll_lines(1000000)", "Last line", show=False, id="pane.end",
                tooltip="The last line"),
    ]  # fmt: skip

    FOLLOWS: ClassVar[bool] = False
    """Whether it shows its last lines until it is scrolled."""

    @dataclass(eq=False)
    class Resized(Message):
        """A pane has got another size or was scrolled: its text must be made again."""

        pane: Pane

    def __init__(self, spec: PaneSpec) -> None:
        super().__init__(id=f"{spec.name}-pane", classes="dashboard-pane side", markup=False)
        self.border_title = spec.title
        self.pane_name = spec.name
        self.shows = spec.shows
        self.scrolled = _FAR if self.FOLLOWS else 0
        """Lines above the first one that is shown; larger than all: the end is followed."""
        self.position = ""
        """Which lines are shown, such as `12–40 of 96`; empty if all are."""
        self._text = spec.text
        self._last_top = 0
        self._drawn: tuple | None = None
        self._rows: list[tuple] = []

    def on_resize(self) -> None:
        self.post_message(self.Resized(self))

    def lines(self, run: RunView, now: float) -> list[Content]:
        """All lines of the pane, none of them wider than it."""
        width, height = self.size
        return wrapped(self._text(run, width, height, now), width)

    def show(self, run: RunView | None, now: float) -> None:
        """Show the run; `now` is Unix time."""
        if not self.display or self.size.width < 4 or self.size.height < 1:
            return
        lines = self.lines(run, now) if run is not None else []
        height = self.size.height
        self._last_top = max(0, len(lines) - height)
        top = min(self.scrolled, self._last_top)
        shown = lines[top : top + height]
        scrolls = len(lines) > height
        self.position = f"{top + 1}–{top + len(shown)} of {len(lines)}" if scrolls else ""
        self._paint(shown)
        self.show_position()

    def show_position(self) -> None:
        """Show which lines are in sight, while the pane has the focus and does not show all."""
        text = self.position if self.has_focus else ""
        if text != (self.border_subtitle or "") and self.pane_name != "run":
            with self.painting(self.edges()):
                self.border_subtitle = text

    def on_focus(self) -> None:
        self.show_position()

    def on_blur(self) -> None:
        self.show_position()

    def _paint(self, lines: list[Content]) -> None:
        """Repaint the lines that differ. A line of text is one of the screen: none is wrapped."""
        rows = [(line.plain, tuple(line.spans)) for line in lines]
        drawn = (tuple(rows), self.size)
        if drawn == self._drawn:
            return
        same_size = self._drawn is not None and self._drawn[-1] == self.size
        changed = changed_lines(self._rows, rows, self.size.width) if same_size else None
        self._drawn, self._rows = drawn, rows
        with self.painting(changed or ()):
            self.update(Content("\n").join(lines), layout=False)

    def action_scroll_lines(self, offset: int) -> None:
        top = min(max(0, min(self.scrolled, self._last_top) + offset), self._last_top)
        self.scrolled = _FAR if self.FOLLOWS and top == self._last_top else top
        self.post_message(self.Resized(self))

    def action_scroll_pages(self, offset: int) -> None:
        self.action_scroll_lines(offset * max(1, self.size.height - 1))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        event.stop()
        self.action_scroll_lines(-3)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        event.stop()
        self.action_scroll_lines(3)


def wrapped(content: Content, width: int) -> list[Content]:
    """The lines of a text, none of them wider than `width` cells."""
    lines: list[Content] = []
    for line in content.split("\n", allow_blank=True):
        lines += line.wrap(width) if line.cell_length > width else [line]
    return lines
