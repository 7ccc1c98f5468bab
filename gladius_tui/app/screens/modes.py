"""Owns the six modes: their order, keys and titles, and where their screens are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gladius_tui.app.screens.base import GladiusScreen


@dataclass(frozen=True)
class Mode:
    """A mode; its screen is class `{Title}Screen` in `gladius_tui.app.screens.{name}`."""

    name: str
    title: str
    key: str
    function_key: str
    about: str

    @property
    def screen(self) -> Callable[[], GladiusScreen]:
        """Makes the screen; imported when it is first shown."""

        def make() -> GladiusScreen:
            module = import_module(f"gladius_tui.app.screens.{self.name}")
            return getattr(module, f"{self.title}Screen")()

        return make


MODES = (
    Mode("models", "Models", "1", "f2", "The experts, and what of them lies here"),
    Mode("download", "Download", "2", "f3", "Fetch experts"),
    Mode("train", "Train", "3", "f4", "Choose a config and start a run"),
    Mode("dashboard", "Dashboard", "4", "f5", "Watch and steer the run"),
    Mode("export", "Export", "5", "f6", "Write the model as GGUF"),
    Mode("validate", "Validate", "6", "f7", "Check the trained model"),
)
