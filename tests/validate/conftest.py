"""Fixtures for the tests of validation."""

from __future__ import annotations

import pytest

from engine.validate import job
from engine.validate.quality import answers
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture
def few_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the quality checks that generate text, where a test is about something else."""
    monkeypatch.setattr(answers, "load_prompts", lambda: [])
    monkeypatch.setattr(answers, "load_questions", lambda: [])
    monkeypatch.setattr(answers, "check_speed", lambda writer: [])
    monkeypatch.setattr(job, "check_abilities", lambda *_: [])
