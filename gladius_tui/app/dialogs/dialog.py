"""The base class of all dialogs."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding
from textual.screen import ModalScreen, ScreenResultType


class Dialog(ModalScreen[ScreenResultType]):
    """A modal screen with a bordered box; escape closes it and returns None."""

    SCOPED_CSS = False
    CSS_PATH = "dialog.tcss"
    BINDINGS: ClassVar = [
        Binding("escape", "cancel", "Back", tooltip="Close and change nothing", id="dialog.back"),
        # The app's own keys do not work while a dialog is open.
        Binding("f8", "app.screenshot_svg", "Screenshot", show=False, id="app.picture",
                tooltip="Save an SVG screenshot"),
    ]  # fmt: skip

    def action_cancel(self) -> None:
        self.dismiss(None)
