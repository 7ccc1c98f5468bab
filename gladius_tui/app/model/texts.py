"""Short texts that several screens show: bars, amounts, rates, aligned columns."""

from __future__ import annotations

from pathlib import Path

from textual.content import Content

from engine.events import Progress
from gladius_tui.format import duration, size


def bar(fraction: float | None, width: int, colour: str = "$primary") -> Content:
    """A bar of `width` cells; None if the total is not known."""
    if fraction is None:
        return Content.styled("▁" * width, "$foreground 40%")
    full = round(min(max(fraction, 0.0), 1.0) * width)
    return Content.styled("▇" * full, colour).append(
        Content.styled("▁" * (width - full), "$foreground 30%")
    )


def fraction_done(progress: Progress) -> float | None:
    """The fraction done, 0 to 1; None if the total is not known."""
    if progress.finished:
        return 1.0
    return min(1.0, progress.done / progress.total) if progress.total else None


def amount(value: float, unit: str) -> str:
    """`1.2 GiB` for bytes, otherwise `1,234 tokens`."""
    return size(value) if unit == "B" else f"{value:,.0f} {unit}".rstrip()


def rate(progress: Progress) -> str:
    """`12.1 MiB/s`, or "" if it is not known."""
    if progress.rate is None or progress.finished:
        return ""
    return f"{amount(progress.rate, progress.unit)}/s"


def eta(progress: Progress) -> str:
    """`3m12`, or "" if it is not known."""
    return "" if progress.eta is None or progress.finished else duration(progress.eta)


def cut(text: str, width: int) -> str:
    """The text in one line of at most `width` cells; … marks a cut."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def without_root(text: str, root: Path) -> str:
    """The text with paths below the root written relative to it."""
    return text.replace(f"{root}/", "") if str(root) != "/" else text


def padded(text: str, width: int) -> str:
    """The text in exactly `width` cells."""
    return cut(text, width).ljust(width)
