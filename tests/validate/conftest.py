"""Fixtures for the tests of validation."""

from __future__ import annotations

import pytest

from engine.validate import job
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the quality checks that generate text, where a test is about something else."""
    kept = tuple(c for c in job.QUALITY_CHECKS if c.name in ("bits_per_byte", "tasks"))
    monkeypatch.setattr(job, "QUALITY_CHECKS", kept)
