"""The commands, a file for each room; importing this registers them all."""

from gladius_tui.commands import clean, data, doctor, experts, export, training, validate

__all__ = ["clean", "data", "doctor", "experts", "export", "training", "validate"]
