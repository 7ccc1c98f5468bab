"""The commands, one module for each group; importing this package registers them all."""

from gladius_tui.commands import (
    ask,
    clean,
    data,
    doctor,
    experts,
    export,
    runs,
    training,
    validate,
)

__all__ = [
    "ask",
    "clean",
    "data",
    "doctor",
    "experts",
    "export",
    "runs",
    "training",
    "validate",
]
