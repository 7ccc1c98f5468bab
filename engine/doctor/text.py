"""Owns the checks of text and time: how much text a run has for how long it is, and the least time
that its arithmetic takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.budget import TokenBudget, count_text, scores_online
from engine.budget import check_text as check_run_text
from engine.config import RunConfig
from engine.doctor.check import Check
from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec
from engine.sizing import parameter_count

LONG_DAYS = 60.0


def check_text(budget: TokenBudget, config: RunConfig) -> Check:
    """How much text there is for how long a run, and whether what streams it is installed."""
    try:
        check_run_text(config)
    except GladiusError as error:
        figure, _, remedy = " ".join(str(error).split()).partition(";")
        return Check(topic="text", status="fail", figure=figure, remedy=remedy.strip())
    figure, _, remedy = budget.sentence().removeprefix("text: ").partition(" (")
    if budget.too_many_epochs:
        return Check(topic="text", status="warn", figure=figure, remedy=remedy.rstrip(")"))
    return Check(topic="text", status="ok", figure=figure)


def scored_tokens(config: RunConfig, specs: Sequence[ExpertSpec], budget: TokenBudget) -> int:
    """Tokens whose targets are kept on disk, all experts together, at most."""
    if scores_online(config):
        return 0
    most = config.data.max_teacher_tokens
    total = budget.answers + (budget.files or 0) * len(specs)
    return int(total if most is None else min(total, most * len(specs)))


def least_tokens(config: RunConfig, budget: TokenBudget) -> float | None:
    """Tokens that the run trains on, or those of its expert phases where only convergence ends it;
    None where hours do."""
    if budget.planned is not None or config.schedule.hours is not None:
        return budget.planned
    return float(len(config.experts.names) * config.schedule.expert_tokens)


def check_speed(
    config: RunConfig, device: str, precision: str, flops: float, tokens: float | None
) -> Check:
    """The least time that the matrix products of the run take: six operations a parameter and
    token (arXiv 2001.08361)."""
    figure = f"{flops / 1e12:,.2f} TFLOP/s in {precision} on {device}"
    rate = flops / (6 * parameter_count(config.student).total)
    figure += f", so {rate:,.0f} tokens/s at the very most"
    if tokens is None:
        if hours := config.schedule.hours:
            figure += f": {count_text(rate * 3600 * hours)} in {hours:g} h"
        return Check(topic="speed", status="ok", figure=figure)
    seconds = tokens / rate
    figure += f": {_length(seconds)} for {tokens:,.0f} tokens"
    if seconds > LONG_DAYS * 86400:
        return Check(
            topic="speed",
            status="warn",
            figure=figure,
            remedy="a faster GPU, a shorter run (--hours N), or a smaller student: --preset nano",
        )
    return Check(topic="speed", status="ok", figure=figure)


def _length(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
