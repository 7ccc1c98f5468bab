"""Fixtures for tests that run the real program."""

from __future__ import annotations

from tests.support.roots import environment, expert, make_root, root, text

__all__ = ["environment", "expert", "make_root", "root", "text"]
