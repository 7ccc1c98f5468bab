"""Fixtures for the tests of this room."""

from __future__ import annotations

from tests.support.threads import one_thread

__all__ = ["one_thread"]
