"""The line below the body in which the key `/` types a filter."""

from __future__ import annotations

from gladius_tui.app.widgets.line_input import LineInput


class FilterBar(LineInput):
    """Shown while it has the focus or holds text."""

    # Not docked: two widgets docked at the bottom cover one another, and the key bar is docked.
    DEFAULT_CSS = """
    FilterBar { display: none; margin: 0 1; &.-on { display: block; } }
    """

    def __init__(self) -> None:
        super().__init__(placeholder="filter", compact=True, id="filter")
