"""The Experts pane: each expert's share, progress, and how closely the student matches it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content

from engine.run.view import ExpertRow, RunView
from gladius_tui.app.widgets.panes.text import MUTED, STRONG, Part, join_lines
from gladius_tui.format import NONE, bar, number, percent

_MARK, _SHARE, _KL, _AGREE, _FORGOT, _PERCENT = 2, 6, 6, 6, 8, 6
"""Columns."""
_LEAST_GAUGE = 4
_FORGETTING = 0.05
"""Rise of KL above its lowest from which on it is marked."""


@dataclass(frozen=True)
class _Layout:
    """Columns of the names and of the progress bar, and whether `forgot` is shown."""

    names: int
    gauge: int
    forgot: bool

    @classmethod
    def fit(cls, rows: list[ExpertRow], width: int) -> _Layout:
        """The layout for a pane of `width` columns."""
        forgot = width >= 56
        numbers = _KL + _AGREE + (_FORGOT if forgot else 0)
        longest = max(len(row.title) for row in rows)
        names = max(6, min(longest, width - _MARK - _SHARE - numbers - 12))
        room = width - _MARK - names - _SHARE - numbers - _PERCENT
        return cls(names, max(0, min(room, 24)), forgot)

    def header(self) -> Content:
        """The titles of the columns."""
        progress = f"{'progress'[: self.gauge + 4]:<{self.gauge + 5}}"
        head = f"{'':{_MARK + self.names}} {'share':>5} {progress}{'KL':>6}{'agree':>6}"
        return Content.styled(head + (f"{'forgot':>8}" if self.forgot else ""), MUTED)


def experts_pane(run: RunView, width: int, height: int) -> Content:
    """A line for each expert; if there is room, a second one about its projected targets."""
    rows = list(run.experts.values())
    if not rows:
        return Content.styled("the experts are listed when the run begins", MUTED)
    layout = _Layout.fit(rows, width)
    lines = [layout.header()]
    with_targets = height > 2 * len(rows)
    for row in rows:
        lines.append(_expert_line(run, row, layout))
        if with_targets:
            lines.append(Content.styled(_targets_line(run, row.name, width - 2), MUTED))
    return join_lines(lines)


def _targets_line(run: RunView, name: str, width: int) -> str:
    """How much of the expert's distributions the projection keeps, in as many words as fit."""
    data = run.data.get(name)
    if data is None:
        return "  its targets are not computed yet" if run.status == "preparing" else ""
    parts = [
        f"  {data.aligned:.0%} aligned",
        f"weight {data.mean_weight:.2f}",
        f"residual {data.mean_residual:.3f}",
        f"{data.dropped_positions:,} of {data.positions:,} positions dropped",
        f"{data.skipped_blocks:,} of {data.blocks + data.skipped_blocks:,} blocks skipped",
    ]
    while len(" · ".join(parts)) > width and len(parts) > 1:
        parts.pop()
    return " · ".join(parts)


def _expert_line(run: RunView, row: ExpertRow, layout: _Layout) -> Content:
    done = row.phase is not None and (run.status == "completed" or (run.phase or 0) > row.phase)
    current = row.phase is not None and row.phase == run.phase and not done
    mark, style = ("✓", "$text-success") if done else ("◆", "$accent") if current else ("○", MUTED)
    parts: list[Part] = [
        (f"{mark} ", style),
        (f"{row.title[: layout.names]:<{layout.names}}", STRONG if current else ""),
        f" {row.share:>5.0%} ",
    ]
    if layout.gauge >= _LEAST_GAUGE:
        parts.append((bar(row.progress or 0.0, layout.gauge), "$accent" if current else MUTED))
        parts.append(f"{percent(row.progress):>5}")
    else:
        parts.append(f"{percent(row.progress):<{layout.gauge + 5}}")
    parts.append((f"{number(row.kl, '{:.2f}'):>6}", STRONG))
    parts.append(f"{percent(row.agreement):>6}")
    if layout.forgot:
        lost = row.forgotten
        text = NONE if lost is None else f"{lost:.0%}"
        style = MUTED if lost is None or lost < _FORGETTING else "$text-warning"
        parts.append((f"{text:>8}", style))
    return Content.assemble(*parts)
