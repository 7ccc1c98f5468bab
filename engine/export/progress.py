"""The callback through which long work in this package reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ReportProgress = Callable[[str, float, float | None], None]
"""Called with (label, done, total); `total` is None where it is unknown. It may raise to stop the
work."""


def no_progress(label: str, done: float, total: float | None) -> None:
    """Report nothing."""
