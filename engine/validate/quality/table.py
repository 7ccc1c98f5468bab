"""The quality checks, in the order in which they run."""

from __future__ import annotations

from engine.validate.quality import (
    capabilities,
    held_out,
    questions,
    speed,
    tasks,
    tool_calls,
)

QUALITY_CHECKS = (
    held_out.CHECK,
    questions.CHECK,
    tool_calls.CHECK,
    capabilities.CHECK,
    speed.CHECK,
    tasks.CHECK,
)
