"""Fixtures for tests of doctor: a root with a tiny expert, and the command as a process."""

from __future__ import annotations

from tests.support.doctor_roots import doctor, expert, ws

__all__ = ["doctor", "expert", "ws"]
