"""Format byte counts and durations as text."""

from __future__ import annotations


def size(count: float) -> str:
    """A number of bytes with a binary unit: `78.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float | None) -> str:
    """Seconds as `45s`, `6m12`, `3h05`, `2d04h`; `–` if unknown."""
    if seconds is None:
        return "–"
    rounded = max(0, round(seconds))
    if rounded < 60:
        return f"{rounded}s"
    if rounded < 3600:
        return f"{rounded // 60}m{rounded % 60:02d}"
    if rounded < 86400:
        return f"{rounded // 3600}h{rounded % 3600 // 60:02d}"
    return f"{rounded // 86400}d{rounded % 86400 // 3600:02d}h"
