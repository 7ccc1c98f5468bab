"""The commands, a file for each room; importing this registers them all."""

from gladius_tui.commands import experts, training

__all__ = ["experts", "training"]
