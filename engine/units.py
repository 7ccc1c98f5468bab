"""Format byte counts as text."""

from __future__ import annotations


def size(count: float) -> str:
    """A number of bytes with a binary unit: `78.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
