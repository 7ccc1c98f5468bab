"""The totals of the selected experts on the Download screen."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from gladius_tui.app.model.download_state import Totals
from gladius_tui.app.model.texts import bar
from gladius_tui.format import NONE, duration, share_of, size


class DownloadTotal(Static):
    """Bytes done and needed, against the free space of the disk."""

    def __init__(self) -> None:
        super().__init__(id="total", classes="pane")
        self.border_title = "Total"

    def show(self, totals: Totals, width: int) -> None:
        """Show the totals, in a terminal of `width` columns."""
        share = totals.done / totals.total if totals.total else None
        amount = share_of(totals.done, totals.total)
        line = Content.assemble(
            bar(share, max(10, min(60, width - 60))),
            f"  {share:.0%}" if share is not None else f"  {NONE}",
            f"  {amount}" if totals.total else "  nothing is selected",
        )
        if totals.speed:
            left = duration(totals.needed / totals.speed)
            line = line.append(f"  {size(totals.speed)}/s  {left} left")
        text = (
            f"{totals.experts} selected · needs {size(totals.needed)} more · "
            f"{size(totals.free)} free"
        )
        if totals.needed > totals.free:
            line = line.append(Content.styled(f"\n✗ {text}: free some space", "$text-error"))
        else:
            line = line.append(f"\n{text}")
        self.update(line)
