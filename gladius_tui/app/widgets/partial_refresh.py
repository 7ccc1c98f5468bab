"""Repaint only the lines that have changed.

A live chart would otherwise fill a slow line (ssh, a serial console), and keys would wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from textual.app import App
from textual.geometry import Region
from textual.widget import Widget

if TYPE_CHECKING:
    from typing import Self


class PartialRefresh(Widget):
    """A widget that can repaint some of its lines only."""

    _only: tuple[Region, ...] = ()

    def refresh(
        self,
        *regions: Region,
        repaint: bool = True,
        layout: bool = False,
        recompose: bool = False,
    ) -> Self:
        return super().refresh(
            *(regions or self._only), repaint=repaint, layout=layout, recompose=recompose
        )

    @contextmanager
    def painting(self, regions: Sequence[Region]) -> Iterator[None]:
        """Inside this context a refresh repaints only these regions (none given: everything)."""
        self._only = tuple(regions)
        try:
            yield
        finally:
            self._only = ()

    def edges(self) -> list[Region]:
        """The first and the last line: the border with its titles."""
        (x, y), (width, height) = self.content_offset, self.outer_size
        return [Region(-x, -y, width, 1), Region(-x, height - 1 - y, width, 1)]


def changed_lines(
    before: Sequence[object], after: Sequence[object], width: int
) -> list[Region] | None:
    """The lines that differ, as regions; None if everything must be repainted."""
    if len(before) != len(after):
        return None
    return [
        Region(0, y, width, 1) for y, (a, b) in enumerate(zip(before, after, strict=True)) if a != b
    ]


def is_behind(app: App) -> bool:
    """Whether the terminal has not yet taken all output."""
    thread = getattr(app._driver, "_writer_thread", None)
    queue = getattr(thread, "_queue", None)
    return queue is not None and not queue.empty()
