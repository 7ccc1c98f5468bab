"""A field for one line of text that keeps all of a pasted block."""

from __future__ import annotations

from textual.events import Paste
from textual.widgets import Input


class LineInput(Input):
    """Textual's Input, which takes the first line of a pasted block and drops the others; here
    the lines are joined with spaces."""

    def _on_paste(self, event: Paste) -> None:
        lines = [line.strip() for line in event.text.splitlines()]
        lines = [line for line in lines if line]
        if len(lines) < 2:
            return  # Input's own handler follows
        event.prevent_default()
        event.stop()
        self.replace(" ".join(lines), *self.selection)
        self.notify(f"The {len(lines)} pasted lines were joined into one", markup=False)
