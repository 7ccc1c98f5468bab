"""The six modes of the app: their order, keys and titles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """A mode; its screen is class `{title}Screen` in module `screens/{name}.py`."""

    name: str
    title: str
    key: str
    function_key: str
    about: str


MODES = (
    Mode("models", "Models", "1", "f2", "The experts and which of their files are on disk"),
    Mode("download", "Download", "2", "f3", "Download experts"),
    Mode("train", "Train", "3", "f4", "Configure and start a run"),
    Mode("dashboard", "Dashboard", "4", "f5", "Watch and control the run"),
    Mode("export", "Export", "5", "f6", "Write the model as a GGUF file"),
    Mode("validate", "Validate", "6", "f7", "Check the trained model"),
)
