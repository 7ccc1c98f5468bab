"""A canvas of braille characters: each cell has 2 x 4 dots and one colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style

Point = tuple[float, float]
"""(x, y) in dots from the top left corner."""

_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_MASKS = [
    [[sum(side[first : last + 1]) for last in range(4)] for first in range(4)] for side in _BITS
]
"""Bits of the dots first..last of a cell's left or right column."""
_BLANK = 0x2800

_PATTERNS = ((1, 1), (1, 2), (4, 6), (2, 4))
"""(dots that are drawn, dots of a period) along a line: solid, dotted, dashed, finely dashed."""


class Canvas:
    """Lines and signs; what is drawn later covers what is below it, cell by cell."""

    def __init__(self, width: int, height: int) -> None:
        """`width`, `height`: in cells."""
        self.width, self.height = width, height
        self._bits = [[0] * width for _ in range(height)]
        self._chars: dict[tuple[int, int], str] = {}
        self._styles: dict[tuple[int, int], Style] = {}

    def line(self, points: Sequence[Point], style: Style, pattern: int = 0) -> None:
        """A line through points with ascending x. Where it leaves the canvas, an arrow on the edge
        shows it."""
        drawn, period = _PATTERNS[pattern % len(_PATTERNS)]
        lowest = 4 * self.height - 1
        for x, (top, bottom) in _spans(points).items():
            if not 0 <= x < 2 * self.width or x % period >= drawn:
                continue
            if top < -0.5:
                self.sign((x, 0), "▲", style)
            if bottom > lowest + 0.5:
                self.sign((x, lowest), "▼", style)
            first, last = max(0, int(top + 0.5)), min(lowest, int(bottom + 0.5))
            if first <= last:
                self._fill(x, first, last, style)

    def sign(self, point: Point, char: str, style: Style) -> None:
        """One character; lines drawn before or after do not cover it."""
        place = int(point[0] + 0.5) // 2, int(point[1] + 0.5) // 4
        if 0 <= place[0] < self.width and 0 <= place[1] < self.height:
            self._chars[place] = char
            self._styles[place] = style

    def cell(self, x: int, y: int) -> tuple[str, Style | None]:
        """(character, style) of a cell; (" ", None) where nothing was drawn."""
        place = x, y
        char = self._chars.get(place)
        if char is None:
            bits = self._bits[y][x]
            char = chr(_BLANK + bits) if bits else " "
        return char, self._styles.get(place)

    def _fill(self, x: int, first: int, last: int, style: Style) -> None:
        column, masks = x // 2, _MASKS[x % 2]
        for y in range(first // 4, last // 4 + 1):
            place = column, y
            if place in self._chars:
                continue
            mask = masks[max(first - 4 * y, 0)][min(last - 4 * y, 3)]
            row = self._bits[y]
            if self._styles.get(place) is style:
                row[column] |= mask
            else:
                row[column] = mask
                self._styles[place] = style


def _spans(points: Sequence[Point]) -> dict[int, tuple[float, float]]:
    """By column of dots: the smallest and the largest y of the line through the points."""
    spans: dict[int, tuple[float, float]] = {}

    def include(column: int, a: float, b: float) -> None:
        if a > b:
            a, b = b, a
        known = spans.get(column)
        if known is not None:
            a, b = a if a < known[0] else known[0], b if b > known[1] else known[1]
        spans[column] = a, b

    x0, y0 = points[0]
    include(int(x0 + 0.5), y0, y0)
    for x1, y1 in points[1:]:
        first, last = int(x0 + 0.5), int(x1 + 0.5)
        if first == last:
            include(first, y0, y1)
        else:
            slope = (y1 - y0) / (x1 - x0)
            include(first, y0, y0 + slope * (first + 0.5 - x0))
            for column in range(first + 1, last):
                left = y0 + slope * (column - 0.5 - x0)
                include(column, left, left + slope)
            include(last, y1 - slope * (x1 - last + 0.5), y1)
        x0, y0 = x1, y1
    return spans
