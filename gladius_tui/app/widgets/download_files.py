"""The files of the running download, with a progress bar for each."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.events import Progress
from gladius_tui.app.model.texts import bar, fraction_done, padded, rate
from gladius_tui.format import size


class DownloadFiles(VerticalScroll):
    """A row for each file; hidden while there is none."""

    def __init__(self) -> None:
        super().__init__(id="files", classes="pane")
        self.border_title = "Files"

    def compose(self) -> ComposeResult:
        yield Static(id="files-text", markup=False)

    def show(self, files: Sequence[Progress]) -> None:
        """Show these files."""
        self.display = bool(files)
        width = max(8, (self.size.width or 60) - 50)
        rows = [
            Content.assemble(
                padded(file.label.partition(": ")[2], 26),
                " ",
                bar(fraction_done(file), width, "$success" if file.finished else "$primary"),
                f" {size(file.done):>10} {rate(file):>12}",
            )
            for file in files
        ]
        self.query_one(Static).update(Content("\n").join(rows))
