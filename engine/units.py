"""Owns how bytes read as text, on the screen and in messages alike."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes with a binary unit: `78.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
