"""Format numbers for commands and app: durations, sizes, bars, sparklines."""

from __future__ import annotations

from collections.abc import Sequence

from engine.units import duration, size

__all__ = [
    "MILESTONES",
    "NONE",
    "axis_number",
    "bar",
    "duration",
    "number",
    "percent",
    "share_of",
    "short_size",
    "size",
    "sparkline",
    "time_ago",
]

NONE = "–"
"""Shown in place of an unknown value."""

MILESTONES = ((100e6, "100M"), (250e6, "250M"), (500e6, "500M"), (750e6, "750M"), (1e9, "1B"))
"""Parameter counts that mark the progress of a student."""

_BLOCKS = "▁▂▃▄▅▆▇█"


def time_ago(seconds: float) -> str:
    """How long ago, in minutes, hours or days, so that it does not change every second."""
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:.0f} days ago"


def number(value: float | None, form: str = "{:,.0f}") -> str:
    """The value in the format `form`; `–` if unknown."""
    return NONE if value is None else form.format(value)


def percent(value: float | None) -> str:
    """A share, 0 to 1, as percent; `–` if unknown."""
    return NONE if value is None else f"{value:.0%}"


def short_size(count: float) -> str:
    """Bytes as a short text: `310 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    if count < 999.5:
        return f"{count:.0f} GiB" if count >= 10 else f"{count:.1f} GiB"
    return f"{count / 1024:.1f} TiB"


def share_of(done: float, total: float) -> str:
    """`1.2 MiB of 3.0 MiB`; without the total where more is on disk than it, such as a package
    beside what was unpacked from it."""
    return size(done) if done > total or not total else f"{size(done)} of {size(total)}"


def axis_number(value: float) -> str:
    """A number as the label of an axis: `12k`, `2.5`, `3e-4`."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if magnitude >= unit:
            return f"{value / unit:.4g}{name}"
    if magnitude >= 1e-3:
        return f"{value:.3g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def bar(share: float, width: int = 30) -> str:
    """A bar of `width` cells, full at a share of 1."""
    full = round(min(max(share, 0.0), 1.0) * width)
    return "▇" * full + "▁" * (width - full)


def sparkline(
    values: Sequence[float | None], low: float | None = None, top: float | None = None
) -> str:
    """The values as a line of blocks, scaled from `low` to `top`; None is a gap.

    The bounds default to the smallest and the largest value.
    """
    known = [value for value in values if value is not None]
    if not known:
        return " " * len(values)
    low = min(known) if low is None else low
    span = (max(known) if top is None else top) - low
    last = len(_BLOCKS) - 1

    def block(value: float | None) -> str:
        if value is None:
            return " "
        level = (value - low) / span if span > 0 else 0.0
        return _BLOCKS[min(last, max(0, round(level * last)))]

    return "".join(block(value) for value in values)
