"""Bar charts of how much each block of the student changes, drawn by plotext.

Imported when the pane Parameters is enlarged for the first time: the first paint does not wait for
plotext.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.color import Color
from textual.containers import Vertical
from textual.content import Content
from textual_plotext import PlotextPlot

from engine.events import LayerStats
from gladius_tui.app.model.axes import tick_labels, ticks
from gladius_tui.app.model.layers import DEAD, EXPLODING, Cell, layer_cells, strip_of
from gladius_tui.app.theme import chart_colours

_TITLES = {"update": "Update / weight", "moved": "Distance from initial weights"}
_LEGEND = "[$chart-1]▌[/]attention  [$chart-2]▐[/]MLP  [$chart-3]█[/]embeddings, head"
_SHORT_LEGEND = "[$chart-1]▌[/]attn [$chart-2]▐[/]MLP"
_DECADE = 10.0
"""Ratio of the largest to the smallest value from which on the axis is logarithmic."""
_LABEL, _END = 6, 7
"""Columns of the labels of the y axis, and of the bar of the embeddings or the head."""
_AWAY = 10_000.0
"""Half cells to the right: out of sight."""
_TWO_ROWS = 16
"""Rows from which on both charts have room."""


class LayerBars(PlotextPlot):
    """One measure of all blocks: a bar for attention and one for the MLP of each, then embeddings
    and head. Below about two columns a block, neighbours share a bar: the most extreme is shown.

    Args:
        what: "update" or "moved", as in `layer_cells`.
    """

    can_focus = False

    def __init__(self, what: str, stats: LayerStats) -> None:
        super().__init__(id=f"layers-{what}", classes="pane")
        self.theme = "textual-clear"  # the pane's own background
        self.what = what
        self.drawings = 0
        """How often it was drawn."""
        self._stats = stats

    def on_mount(self) -> None:
        self.app.theme_changed_signal.subscribe(self, lambda _: self._draw())

    def on_resize(self) -> None:
        self._draw()

    def show(self, stats: LayerStats) -> None:
        """Draw these values, unless they are drawn already."""
        if stats is not self._stats:
            self._stats = stats
            self._draw()

    def _draw(self) -> None:
        columns = self.size.width - _LABEL - 1
        if columns < 3 * _END or self.size.height < 4:
            return
        self.drawings += 1
        plot = self.plt
        plot.clear_figure()
        rows = layer_cells(self._stats, self.what)
        scale = _Scale([c.value for row in rows.values() for c in row], self.size.height // 3)
        plot.xaxes(True, False)
        plot.yaxes(True, False)
        plot.xlim(0, 2 * columns - 1)  # in half cells, so that a bar begins and ends with a cell
        plot.ylim(0, scale.top)
        plot.yticks(scale.positions, [f"{label:>{_LABEL}}" for label in scale.labels])
        names: list[tuple[float, str]] = []
        colours = [Color.parse(colour).rgb for colour in chart_colours(self.app)]
        for places, cells, width, colour in _groups(rows, columns):
            centres = [2 * place + width - 0.5 for place in places]
            self._draw_bars(centres, cells, width, colours[colour], scale)
            if colour == 0:
                share = -(-len(rows["attn"]) // len(cells))
                names += [(x + width, str(n * share)) for n, x in enumerate(centres)]
            elif colour == 2:
                names += [(x, cell.name) for x, cell in zip(centres, cells, strict=True)]
        shown = _with_room(names, columns)
        plot.xticks([x for x, _ in shown], [name for _, name in shown])
        self._set_titles(scale.log)
        self.refresh()

    def _draw_bars(
        self,
        centres: Sequence[float],
        cells: Sequence[Cell],
        width: int,
        colour: tuple[int, int, int],
        scale: _Scale,
    ) -> None:
        """Bars of `width` columns; a sign where there is nothing to measure."""
        xs, heights = list(centres), [scale.height(cell.value) for cell in cells]
        if len(xs) == 1:  # plotext measures the width of bars in distances of two
            xs, heights = [*xs, xs[0] + _AWAY], [*heights, 0.0]
        share = (2 * width - 1) / (xs[1] - xs[0])
        self.plt.bar(xs, heights, width=share, marker="hd", color=colour, reset_ticks=False)
        for x, height, cell in zip(centres, heights, cells, strict=False):
            if not height:
                sign = EXPLODING if cell.value is None else DEAD
                self.plt.text(sign, x, 0, color=colour, background="default", alignment="center")

    def _set_titles(self, log: bool) -> None:
        title = _TITLES[self.what]
        if self.what == "update":
            title += f", {self._stats.interval} steps"
        self.border_title = Content(f"{title} · log" if log else title)
        self.border_subtitle = _LEGEND if self.size.width >= 50 else _SHORT_LEGEND


class _Scale:
    """The y axis: linear from 0, or logarithmic if the values differ by a factor of ten.

    Heights are counted from the axis, so that a bar of height 0 is none.
    """

    def __init__(self, values: Sequence[float | None], most: int) -> None:
        known = [v for v in values if v is not None and math.isfinite(v) and v > 0]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        self.log = bool(known) and high >= _DECADE * low
        most = max(2, most)
        if self.log:
            # The smallest value has a bar too.
            self._floor = math.log10(low) - 0.15 * math.log10(high / low)
            self.top = 1.03 * (math.log10(high) - self._floor)
            marks = _round_values(self._floor, self._floor + self.top, most)
        else:
            self.top = 1.03 * high
            marks = ticks(0.0, self.top, most)
        self.labels = tick_labels(marks)
        self.positions = [self.height(mark) for mark in marks]

    def height(self, value: float | None) -> float:
        """The height of a bar; 0 if there is none."""
        if value is None or not math.isfinite(value) or value <= 0:
            return 0.0
        return math.log10(value) - self._floor if self.log else value


def _round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` round values whose log10 is between low and high, evenly apart on the axis."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        inside = [value for value in values if low <= math.log10(value) <= high]
        if len(inside) <= most:
            return inside
    return inside[:: -(-len(inside) // most)]


def _groups(
    rows: dict[str, list[Cell]], columns: int
) -> Iterator[tuple[list[int], list[Cell], int, int]]:
    """(first column of each bar, layers, columns of a bar, index of its colour) of each kind."""
    ends = [rows[label][0] for label in ("embed", "head") if label in rows]
    room = columns - len(ends) * _END - 1
    blocks = [strip_of(rows[label], room // 2) for label in ("attn", "mlp") if label in rows]
    bar, step = 1, 2
    if blocks:
        step = max(2, min(room // len(blocks[0]), 2 * _END))
        bar = max(1, (step - 1) // 2)
        for n, cells in enumerate(blocks):
            yield [1 + k * step + n * bar for k in range(len(cells))], cells, bar, n
        room = min(room, len(blocks[0]) * step)
    bar = min(bar, _END - 2)
    first = room + 1 + (_END - bar) // 2
    yield [first + n * _END for n in range(len(ends))], ends, bar, 2


def _with_room(names: Sequence[tuple[float, str]], columns: int) -> list[tuple[float, str]]:
    """The labels that do not run into the one before them; positions are half cells."""
    shown: list[tuple[float, str]] = []
    end = -1.0
    for x, name in sorted(names):
        left, right = x / 2 - len(name) / 2, x / 2 + len(name) / 2
        if left >= end + 1 and right <= columns:
            shown.append((x, name))
            end = right
    return shown


class LayerCharts(Vertical):
    """The update of each layer, and below it, if there is room, its distance from the initial
    weights."""

    DEFAULT_CSS: ClassVar = """
    LayerCharts LayerBars { height: 1fr; }
    """

    def __init__(self, stats: LayerStats) -> None:
        super().__init__(id="layers")
        self._stats = stats

    def compose(self) -> ComposeResult:
        yield LayerBars("update", self._stats)
        yield LayerBars("moved", self._stats)

    def on_resize(self) -> None:
        self.query_one("#layers-moved").display = self.size.height >= _TWO_ROWS

    def show(self, stats: LayerStats) -> None:
        """Draw these values if they are new."""
        self._stats = stats
        for bars in self.query(LayerBars):
            bars.show(stats)
