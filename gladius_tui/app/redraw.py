"""Limit how often a screen is redrawn."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.screen import Screen

from gladius_tui.app.widgets.partial_refresh import is_behind

_LEAST_SECONDS = 0.25
_MOST_SECONDS = 4.0
"""Interval over a very slow line."""


class Redraw:
    """Calls `draw` at most four times a second, less often over a slow line."""

    def __init__(self, screen: Screen, draw: Callable[[], None]) -> None:
        self._screen, self._draw = screen, draw
        self._drawn_at = 0.0
        self._interval = _LEAST_SECONDS
        self.scheduled = False

    def schedule(self) -> None:
        """Draw soon."""
        if self.scheduled:
            return
        self.scheduled = True
        wait = max(0.01, self._interval - (time.monotonic() - self._drawn_at))
        self._screen.set_timer(wait, self._draw_unless_behind)

    def drawn(self) -> None:
        """The screen was drawn just now."""
        self.scheduled = False
        self._drawn_at = time.monotonic()

    def _draw_unless_behind(self) -> None:
        """Draw, unless the terminal has not yet taken the previous output."""
        self.scheduled = False
        if is_behind(self._screen.app):
            self._interval = min(2 * self._interval, _MOST_SECONDS)
            self._drawn_at = time.monotonic()
            self.schedule()
            return
        self._interval = max(_LEAST_SECONDS, 0.8 * self._interval)
        self._draw()
