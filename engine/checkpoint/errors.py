"""Errors of writing and reading checkpoints."""

from __future__ import annotations

from engine.errors import GladiusError


class CheckpointError(GladiusError):
    """A checkpoint can't be written, or does not verify."""


class OutOfSpace(CheckpointError):
    """The disk has no room for the next checkpoint; the earlier ones are unchanged."""


class NonFinite(CheckpointError):
    """The training state holds NaN or infinity, so no checkpoint is written."""
