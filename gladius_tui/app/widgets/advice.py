"""The line under the Dashboard's panes: warnings about the run, and what comes next after it."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from engine.run.view import RunView
from gladius_tui.app.model.texts import cut

_NEXT = {
    "completed": "Finished. Next: 6 validate · 5 export · i ask it",
    "ended": "Stopped. Next: r resume · 6 validate · 5 export · i ask",
    "failed": "Next: r resume · / search the log for the reason",
}
_LINES = 3
"""Warnings that are shown; the log has all."""


class Advice(Static):
    """Hidden while there is nothing to say."""

    DEFAULT_CSS = """
    Advice { display: none; height: auto; max-height: 4; padding: 0 1; }
    Advice.-on { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(id="advice", markup=False)
        self._shown: Content | None = None

    def show(self, run: RunView | None, *, former: bool, width: int) -> None:
        """Show the advice about a run in `width` columns; `former`: an earlier one was opened."""
        lines = advice_lines(run, former=former, width=width - 2)
        content = Content("\n").join(lines)
        if content != self._shown:
            self._shown = content
            self.update(content)
            self.set_class(bool(lines), "-on")


def advice_lines(run: RunView | None, *, former: bool, width: int) -> list[Content]:
    """The warnings that hold, then what comes next; pure."""
    if run is None:
        return []
    lines = [
        Content.styled(cut(f"! {warning.text}", width), "$text-warning")
        for warning in list(run.warnings.values())[:_LINES]
    ]
    if former:
        text = "An earlier run, from the history. h opens the list of runs."
        lines.append(Content.styled(cut(text, width), "$text-primary"))
    elif not run.alive and run.status in _NEXT:
        lines.append(Content.styled(cut(_NEXT[run.status], width), "$text-primary"))
    return lines
