"""Schedules of runs with up to four experts, for tests of phases and decisions."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import OptimizerConfig, RunConfig, ScheduleConfig
from engine.distill.train.decisions import due_decisions
from engine.distill.train.phases import Decision, Schedule, plan_phases

TOKENS = 1000  # student tokens of a step
LR = 3e-4


class Expert(msgspec.Struct, frozen=True):
    name: str
    title: str
    weight: float


FOUR = (
    Expert("qwen", "Qwen", 1.5),
    Expert("llama", "Llama", 1.3),
    Expert("phi", "Phi", 1.2),
    Expert("tinyllama", "TinyLlama", 1.0),
)


def make_schedule(
    *, experts: tuple[Expert, ...] = FOUR, decisions: tuple[Decision, ...] = (), **fields: Any
) -> Schedule:
    fields = {"warmup_steps": 0, **fields}
    optimizer = OptimizerConfig(lr=LR, global_batch_size=1, max_seq_len=TOKENS)
    config = RunConfig(optimizer=optimizer, schedule=ScheduleConfig(**fields))
    return Schedule(config, plan_phases(config, experts), decisions)


def run_by_plan(schedule: Schedule, steps: int) -> Schedule:
    """The schedule after `steps` steps, with the due decisions of each."""
    for step in range(1, steps + 1):
        for decision in due_decisions(schedule, step):
            schedule = schedule.with_decision(decision)
    return schedule


def lengths(schedule: Schedule) -> list[int]:
    """Steps of the expert phases and the unified one."""
    found = []
    for phase in schedule.phases[1:-1]:
        first, last = schedule.bounds(phase)
        assert first is not None and last is not None
        found.append(last - first + 1)
    return found
