"""The Sample pane: the student's latest sample."""

from __future__ import annotations

from textual.content import Content

from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import MUTED, printable


def sample_pane(run: RunView) -> Content:
    """The text of the pane."""
    sample = run.sample
    if sample is None:
        return Content.styled("a sample is generated at every evaluation", MUTED)
    prompt = " ".join(printable(sample.prompt).split())
    text = printable(sample.text).strip()
    return Content.assemble(
        (f"> {prompt}\n", MUTED), text or ("(empty answer)", MUTED), ("\n", ""),
        (f"step {sample.step:,}", MUTED),
    )  # fmt: skip
