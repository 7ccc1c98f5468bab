"""What a chart shows: curves, their range of steps, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gladius_tui.app.model.curves import Curve, is_sparse, title_of
from gladius_tui.format import NONE, axis_number


@dataclass
class Series:
    """A curve as it is drawn."""

    curve: Curve
    colour: int
    """Index into the theme's chart colours."""
    run: str = ""
    """Title of the former run that it belongs to; "" for the current run."""


@dataclass
class Drawing:
    """Everything that a chart shows: curves over the steps lo <= step < hi."""

    series: list[Series] = field(default_factory=list)
    lo: int = 0
    hi: int = 1
    log: bool = False
    smoothing: float | None = None
    """Factor of the moving average; None draws the raw values."""

    def snapshot(self) -> Drawing:
        """A copy that does not grow."""
        series = [
            Series(Curve(s.curve.metric, list(s.curve.columns)), s.colour, s.run)
            for s in self.series
        ]
        return Drawing(series, self.lo, self.hi, self.log, self.smoothing)


def legend(drawing: Drawing, colours: Sequence[str]) -> list[tuple[str, str]]:
    """(text, colour) of each curve: its name and newest value."""
    parts: list[tuple[str, str]] = []
    for series in drawing.series:
        colour = colours[series.colour % len(colours)]
        name = title_of(series.curve.metric)
        if series.run:
            parts.append((f"┄ {series.run} ", f"{colour} 70%"))
            continue
        last = next((c.last for c in reversed(series.curve.columns) if c.last is not None), None)
        value = NONE if last is None else axis_number(last) if abs(last) < 1e-2 else f"{last:.2f}"
        sign = "•" if is_sparse(series.curve.metric) else "─"
        parts.append((f"{sign} {name} {value}  ", colour))
    return parts
