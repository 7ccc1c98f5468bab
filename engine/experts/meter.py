"""Owns how fast something comes: a rate over the last seconds, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque

_WINDOW = 10.0
_LEAST = 0.5


class Meter:
    """Counts what has come, by the monotonic clock."""

    def __init__(self, done: float = 0.0, now: float | None = None) -> None:
        self._marks = deque([(time.monotonic() if now is None else now, done)])

    def update(self, done: float, now: float | None = None) -> None:
        """Tell how much has come in all; less than before (begun anew) starts the count again."""
        now = time.monotonic() if now is None else now
        if done < self._marks[-1][1]:
            self._marks.clear()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW:
            self._marks.popleft()

    def restart(self, done: float, now: float | None = None) -> None:
        """Forget the past, as after a pause."""
        self._marks.clear()
        self._marks.append((time.monotonic() if now is None else now, done))

    @property
    def rate(self) -> float | None:
        """Units a second over the last ten seconds; None where too little is known."""
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        return (last - first) / (ended - began) if ended - began >= _LEAST else None

    def eta(self, remaining: float) -> float | None:
        """Seconds that so many more units take at this rate; None where it can't be told."""
        rate = self.rate
        return remaining / rate if rate else None
