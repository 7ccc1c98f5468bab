"""Doctor checks of training text and time: enough text for the run's length, and a lower bound on
its duration.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.budget import TokenBudget, count_text, scores_online
from engine.budget import check_text as check_run_text
from engine.config import RunConfig
from engine.doctor.check import Check
from engine.errors import GladiusError
from engine.events import describe_texts
from engine.experts.registry import ExpertSpec
from engine.sizing import parameter_count
from engine.text.tally import faulty

LONG_DAYS = 60.0


def check_text(budget: TokenBudget, config: RunConfig) -> Check:
    """Whether there is enough text for the run's length, and whether it can be read."""
    try:
        surveys = check_run_text(config)
    except GladiusError as error:
        figure, _, remedy = " ".join(str(error).split()).partition(";")
        return Check(topic="text", status="fail", figure=figure, remedy=remedy.strip())
    figure, _, remedy = budget.sentence().removeprefix("text: ").partition(" (")
    tables = [found.table for found in surveys if found.table.reasons]
    if tables:
        figure += "; " + "; ".join(describe_texts(table) for table in tables)
    if budget.too_many_epochs:
        return Check(topic="text", status="warn", figure=figure, remedy=remedy.rstrip(")"))
    if any(table.left_out for table in tables):
        remedy = "none needed: repeated texts are learnt once"
        if any(faulty(table) for table in tables):
            remedy = "correct the texts that are left out; the others are learnt"
        return Check(topic="text", status="warn", figure=figure, remedy=remedy)
    return Check(topic="text", status="ok", figure=figure)


def scored_tokens(config: RunConfig, specs: Sequence[ExpertSpec], budget: TokenBudget) -> int:
    """Upper bound on the tokens whose targets are stored on disk, summed over the experts."""
    if scores_online(config):
        return 0
    most = config.data.max_teacher_tokens
    total = budget.answers + (budget.files or 0) * len(specs)
    return int(total if most is None else min(total, most * len(specs)))


def least_tokens(config: RunConfig, budget: TokenBudget) -> float | None:
    """Tokens that the run trains on at least: its length, or that of its expert phases if
    convergence ends it. None if --hours ends it."""
    if budget.planned is not None or config.schedule.hours is not None:
        return budget.planned
    return float(len(config.experts.names) * config.schedule.expert_tokens)


def check_speed(
    config: RunConfig, device: str, precision: str, flops: float, tokens: float | None
) -> Check:
    """Lower bound on the run's duration: 6 FLOPs for each parameter and token
    (https://arxiv.org/abs/2001.08361).

    `flops`: measured FLOP/s of matrix products; `tokens`: None for a run of `schedule.hours`.
    """
    figure = f"{flops / 1e12:,.2f} TFLOP/s in {precision} on {device}"
    rate = flops / (6 * parameter_count(config.student).total)
    figure += f", so at most {rate:,.0f} tokens/s"
    if tokens is None:
        if hours := config.schedule.hours:
            figure += f": {count_text(rate * 3600 * hours)} in {hours:g} h"
        return Check(topic="speed", status="ok", figure=figure)
    seconds = tokens / rate
    figure += f": {_duration(seconds)} for {tokens:,.0f} tokens"
    if seconds > LONG_DAYS * 86400:
        return Check(
            topic="speed",
            status="warn",
            figure=figure,
            remedy="use a faster GPU, a shorter run (--hours N) or a smaller student "
            "(--preset nano)",
        )
    return Check(topic="speed", status="ok", figure=figure)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
