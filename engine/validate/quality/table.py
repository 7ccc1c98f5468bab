"""The quality metrics, in the order in which they are measured."""

from __future__ import annotations

from engine.validate.check import Check
from engine.validate.quality.capabilities import check_capabilities
from engine.validate.quality.held_out import check_held_out
from engine.validate.quality.questions import check_questions
from engine.validate.quality.speed import check_speed
from engine.validate.quality.tasks import check_tasks
from engine.validate.quality.tool_calls import check_tool_calls

QUALITY_CHECKS = (
    Check("bits_per_byte", "bits per byte", check_held_out, needs="model"),
    Check("routing", "tool routing", check_questions, needs="model"),
    Check("valid_tool_calls", "valid tool calls", check_tool_calls, needs="model"),
    Check("abilities", "capability scores", check_capabilities, needs="model"),
    Check("generation_speed", "generation speed", check_speed, needs="model"),
    Check("tasks", "tasks", check_tasks, needs="model"),
)
