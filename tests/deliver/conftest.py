"""What the tests of delivery share with those of distillation: small runs and toys."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "distill"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models here are tiny: threads only cost."""
    torch.set_num_threads(1)


@pytest.fixture
def few_prompts(monkeypatch):
    """For validations where what is written is not the matter: nothing is."""
    from engine.deliver import quality_answers, validate

    monkeypatch.setattr(quality_answers, "load_prompts", lambda: [])
    monkeypatch.setattr(quality_answers, "load_questions", lambda: [])
    monkeypatch.setattr(quality_answers, "check_speed", lambda writer: [])
    monkeypatch.setattr(validate, "check_abilities", lambda *_: [])
