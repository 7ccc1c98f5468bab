"""Fixtures for tests of the audit job."""

from __future__ import annotations

from tests.support.doctor_roots import expert, ws

__all__ = ["expert", "ws"]
