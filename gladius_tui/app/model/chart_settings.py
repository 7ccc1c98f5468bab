"""What the user has chosen for the chart: metrics, range, scale, smoothing, former runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from gladius_tui.app.model.curves import SMOOTHINGS, View
from gladius_tui.format import axis_number

DEFAULT_METRICS = ("kl", "ce", "bits_per_byte")
_LONG_RUN = 1000
"""Steps from which on the default moving average is a longer one."""
_SHORT_SMOOTHING = 0.9


@dataclass
class ChartSettings:
    """The choices for one chart."""

    view: View = field(default_factory=View)
    log_scale: bool = False
    metrics: tuple[str, ...] = DEFAULT_METRICS
    overlaid: dict[str, str] = field(default_factory=dict)
    """Titles of the former runs that are laid over this one, by run id."""
    _smoothing: float | None = SMOOTHINGS[0]
    _smoothing_chosen: bool = False

    def smoothing(self, newest: int) -> float | None:
        """The factor of the moving average: the chosen one, else one that suits the run's length
        of `newest` steps."""
        if self._smoothing_chosen or newest >= _LONG_RUN:
            return self._smoothing
        return _SHORT_SMOOTHING

    def next_smoothing(self, newest: int) -> None:
        """Choose the next factor."""
        index = SMOOTHINGS.index(self.smoothing(newest))
        self._smoothing = SMOOTHINGS[(index + 1) % len(SMOOTHINGS)]
        self._smoothing_chosen = True

    def subtitle(self, newest: int) -> str:
        """Smoothing, scale and range, such as `EMA .98 · lin`."""
        factor = self.smoothing(newest)
        parts = [
            "raw" if factor is None else f"EMA {factor:g}".replace("0.", "."),
            "log" if self.log_scale else "lin",
        ]
        if self.view.span is not None:
            lo, hi = self.view.bounds(newest)
            steps = f"{axis_number(lo)}-{axis_number(hi - 1)}"
            parts.append(
                f"{self.view.span:,} steps, {'newest' if self.view.end is None else steps}"
            )
        return " · ".join(parts)
