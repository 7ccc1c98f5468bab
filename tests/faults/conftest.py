"""Fixtures of tests that run the program as a process."""

from __future__ import annotations

from tests.support.roots import environment, expert, make_root, root, text

__all__ = ["environment", "expert", "make_root", "root", "text"]
