"""Measure a transfer rate over the last seconds and the remaining time."""

from __future__ import annotations

import time
from collections import deque

_WINDOW = 10.0  # seconds
_MIN_INTERVAL = 0.5


class Meter:
    """The rate of a counter (bytes, say) over the last 10 seconds of the monotonic clock."""

    def __init__(self, done: float = 0.0, now: float | None = None) -> None:
        self._marks = deque([(time.monotonic() if now is None else now, done)])

    def update(self, done: float, now: float | None = None) -> None:
        """Record the counter's value; a smaller value than before restarts the measurement."""
        now = time.monotonic() if now is None else now
        if done < self._marks[-1][1]:
            self._marks.clear()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()

    def restart(self, done: float, now: float | None = None) -> None:
        """Discard earlier values, as after a pause."""
        self._marks.clear()
        self._marks.append((time.monotonic() if now is None else now, done))

    @property
    def rate(self) -> float | None:
        """Units per second over the last 10 seconds; None in the first half second."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end - start >= _MIN_INTERVAL else None

    def eta(self, remaining: float) -> float | None:
        """Seconds for `remaining` more units at the current rate; None if it is unknown or 0."""
        rate = self.rate
        return remaining / rate if rate else None
