"""The line below the body in which the key `/` types a filter."""

from __future__ import annotations

from textual.widgets import Input


class FilterBar(Input):
    """Shown while it has the focus or holds text."""

    DEFAULT_CSS = """
    FilterBar { display: none; dock: bottom; margin: 0 1; &.-on { display: block; } }
    """

    def __init__(self) -> None:
        super().__init__(placeholder="filter", compact=True, id="filter")
