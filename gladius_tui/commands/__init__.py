"""The commands, one module for each group; importing this package registers them all."""

from gladius_tui.commands import clean, data, doctor, experts, export, training, validate

__all__ = ["clean", "data", "doctor", "experts", "export", "training", "validate"]
