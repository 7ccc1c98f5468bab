"""What the user has chosen for the chart: metrics, range, scale, smoothing, former runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from gladius_tui.app.model.axes import step_label
from gladius_tui.app.model.curves import SMOOTHINGS, View

DEFAULT_METRICS = (
    *("loss", "kl", "ce", "bits_per_byte", "lr", "tokens_per_sec", "grad_norm"),
    *("update/attention", "update/mlp", "update/embeddings", "update/head"),
)
_LONG_RUN = 1000
"""Steps from which on the default moving average is a longer one."""
_SHORT_SMOOTHING = 0.9


@dataclass
class ChartSettings:
    """The choices for one chart."""

    view: View = field(default_factory=View)
    log_scale: bool = False
    metrics: tuple[str, ...] = DEFAULT_METRICS
    clip: bool = True
    """Whether outliers are clipped."""
    cursor: int | None = None
    """The step whose values are read; None: the newest."""
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

    def move_cursor(self, offset: int, newest: int) -> None:
        """Move the cursor by a number of steps, within the visible range; it begins at its end."""
        lo, hi = self.view.bounds(newest)
        at = hi - 1 if self.cursor is None else self.cursor
        self.cursor = min(max(at + offset, lo), hi - 1)

    def subtitle(self, newest: int) -> str:
        """Smoothing, scale and range, such as `EMA .98 · lin`."""
        factor = self.smoothing(newest)
        parts = [
            "raw" if factor is None else f"EMA {factor:g}".replace("0.", "."),
            "log" if self.log_scale else "lin",
        ]
        if not self.clip:
            parts.append("all values")
        if self.view.span is not None:
            lo, hi = self.view.bounds(newest)
            spacing = max(1, (hi - lo) // 100)
            steps = f"{step_label(lo, spacing)}–{step_label(hi - 1, spacing)}"
            parts.append(
                f"{self.view.span:,} steps, {'newest' if self.view.end is None else steps}"
            )
        return " · ".join(parts)
