"""A widget of one line of text, parts of which can be clicked."""

from __future__ import annotations

from textual.content import Content
from textual.events import Click
from textual.widget import Widget


class ClickableLine(Widget):
    """A line of text, parts of which can be clicked."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    ClickableLine { height: 1; background: $panel; text-wrap: nowrap; text-overflow: clip; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[int, int, str]] = []
        """First and last cell of each part that can be clicked, and the action it runs."""

    def add_target(self, line: Content, part: Content, action: str = "") -> Content:
        """Append `part` to the line; clicking it runs `action` ("": nothing)."""
        start = line.cell_length
        if action:
            self.targets.append((start, start + part.cell_length - 1, action))
        return line.append(part)

    async def on_click(self, event: Click) -> None:
        for start, stop, action in self.targets:
            if start <= event.x <= stop:
                await self.app.run_action(action, self.screen)
