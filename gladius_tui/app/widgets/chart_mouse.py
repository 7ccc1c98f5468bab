"""The mouse over a chart: its position as a step, and the wheel."""

from __future__ import annotations

from dataclasses import dataclass

from textual.events import (
    Leave,
    MouseMove,
    MouseScrollDown,
    MouseScrollLeft,
    MouseScrollRight,
    MouseScrollUp,
)
from textual.message import Message
from textual.widget import Widget

_WHEEL_ZOOM, _WHEEL_PAN = 1.25, 0.1


class ChartMouse(Widget):
    """A chart that posts what the mouse does over it; it overrides `step_at`."""

    @dataclass(eq=False)
    class Pointed(Message):
        """The mouse is over this step; None: it has left the plot."""

        step: int | None

    @dataclass(eq=False)
    class Zoomed(Message):
        """The wheel was turned over a step: show `factor` times as many steps."""

        factor: float
        step: int

    @dataclass(eq=False)
    class Panned(Message):
        """Move the range by this share of it."""

        share: float

    def step_at(self, x: int) -> int | None:
        """The step at a column of the widget; None outside the plot."""
        raise NotImplementedError

    def on_mouse_move(self, event: MouseMove) -> None:
        self.post_message(self.Pointed(self.step_at(event.x)))

    def on_leave(self, _: Leave) -> None:
        self.post_message(self.Pointed(None))

    def on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        self._wheel(event, 1 / _WHEEL_ZOOM, -_WHEEL_PAN)

    def on_mouse_scroll_down(self, event: MouseScrollDown) -> None:
        self._wheel(event, _WHEEL_ZOOM, _WHEEL_PAN)

    def on_mouse_scroll_left(self, event: MouseScrollLeft) -> None:
        event.stop()
        self.post_message(self.Panned(-_WHEEL_PAN))

    def on_mouse_scroll_right(self, event: MouseScrollRight) -> None:
        event.stop()
        self.post_message(self.Panned(_WHEEL_PAN))

    def _wheel(self, event: MouseScrollUp | MouseScrollDown, zoom: float, pan: float) -> None:
        event.stop()
        step = self.step_at(event.x)
        if event.shift or event.ctrl:
            self.post_message(self.Panned(pan))
        elif step is not None:
            self.post_message(self.Zoomed(zoom, step))
