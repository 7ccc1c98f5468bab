"""The decisions that end phases, start and shorten the decay, and change the data mix.

Pure functions of the schedule and of what is passed in: no clock is read here. `step` is the number
of completed steps; the decisions returned apply from the next step on. The trainer writes them to
the journal before it acts on them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engine.distill.train.phases import Decision, Schedule


def due_decisions(schedule: Schedule, step: int) -> list[Decision]:
    """Planned ends of phases and planned start of the decay that are reached after `step` steps.

    In the journal they stay where they are, even if a later resume has another budget.
    """
    decided = {int(d.value) for d in schedule.decisions if d.kind == "phase_end"}
    due = []
    for phase in schedule.phases:
        last = schedule.bounds(phase)[1]
        if phase.kind != "expert" or phase.index in decided or last is None or last > step:
            continue
        due.append(Decision(last, "phase_end", phase.index, "its steps are done"))
    decay = schedule.decay
    if decay is not None and schedule.decay_begun is None and decay[0] <= step + 1:
        length = decay[1] - decay[0] + 1
        due.append(Decision(decay[0] - 1, "decay_start", length, "the end of the run is near"))
    return due


def on_policy_decision(schedule: Schedule, step: int, run_progress: float | None) -> list[Decision]:
    """Start of on-policy training: after the share `on_policy_from` of the run, or, if the end of
    the run is not known (`run_progress` None), with the unified phase."""
    settings = schedule.config.schedule
    decided = any(d.kind == "on_policy" for d in schedule.decisions)
    if settings.on_policy_share == 0 or decided:
        return []
    if run_progress is not None:
        due = run_progress >= settings.on_policy_from
    else:
        due = schedule.phase_at(step + 1).kind == "unified"
    reason = "the student's own writing is learnt from"
    return [Decision(step, "on_policy", settings.on_policy_share, reason)] if due else []


def mix_decision(
    schedule: Schedule, step: int, deficits: Mapping[str, float | None]
) -> list[Decision]:
    """New shares of the unified phase after an evaluation, if `schedule.mix` is "deficits".

    An expert's share is proportional to its weight times its deficit (held-out KL), and between
    half and twice its share by weight, so that no expert is forgotten. No decision if a deficit is
    not known, or if the mix was already decided at this step.
    """
    if schedule.config.schedule.mix != "deficits":
        return []
    if schedule.phase_at(step + 1).kind != "unified":
        return []
    if any(d.kind == "mix" and d.step == step for d in schedule.decisions):
        return []
    shares = schedule.weight_shares()
    known = {name: deficits.get(name) for name in shares}
    if any(d is None or not math.isfinite(d) or d <= 0 for d in known.values()):
        return []
    weighted = {name: shares[name] * float(known[name] or 0.0) for name in shares}
    total = sum(weighted.values())
    bounded = {
        name: min(2 * shares[name], max(shares[name] / 2, weighted[name] / total))
        for name in shares
    }
    total = sum(bounded.values())
    value = ",".join(f"{name}={share / total:.4f}" for name, share in bounded.items())
    return [Decision(step, "mix", value, "by what the student lacks of each expert")]


def finish_decision(
    schedule: Schedule, step: int, reason: str = "asked to finish"
) -> list[Decision]:
    """End the run: all expert phases end, and the decay begins at the next step.

    The decay takes `decay_share` of the steps so far (at least one; none if the share is 0), up to
    the planned end. No decision if the decay has begun or the run is over. Also used on
    convergence, with its own reason.
    """
    end, decay = schedule.end_step, schedule.decay
    over = end is not None and step >= end
    if over or (decay is not None and decay[0] <= step + 1):
        return []
    share = schedule.config.schedule.decay_share
    length = max(1, round(share * step)) if share else 0
    if end is not None:
        length = min(length, end - step)
    return [*_end_experts(schedule, step, reason), Decision(step, "decay_start", length, reason)]


def _end_experts(schedule: Schedule, step: int, reason: str) -> list[Decision]:
    ends = []
    for phase in schedule.phases:
        last = schedule.bounds(phase)[1]
        if phase.kind == "expert" and (last is None or last > step):
            ends.append(Decision(step, "phase_end", phase.index, reason))
    return ends


def clock_decisions(
    schedule: Schedule,
    step: int,
    *,
    elapsed: float,
    hours: float,
    seconds_per_step: float,
    save_seconds: float,
) -> list[Decision]:
    """Decisions for a run with `schedule.hours`.

    The time left, less the final save, is divided among the current and later phases at every call:
    the current phase ends when it has used its share. So time spent elsewhere (scoring, a slower
    device) shortens all of them. The decay begins when the time left is `decay_share` of the
    training, and is shortened if it turns out too long.

    Args:
        elapsed: unpaused seconds of the run, all attempts together.
        hours: `schedule.hours`.
        seconds_per_step: a recent mean, including evaluations; 0 if not measured yet.
        save_seconds: reserved for the final save.
    """
    left = hours * 3600 - save_seconds - elapsed
    if seconds_per_step <= 0:
        return _out_of_time(schedule, step) if left <= 0 else []
    affordable = max(0, math.floor(left / seconds_per_step))
    if schedule.decay_begun is not None:
        return _shortened_decay(schedule, step, affordable)
    decided: list[Decision] = []
    for phase in schedule.phases:
        if phase.kind == "expert" and schedule.phase_at(step + 1) == phase:
            spent, budget = _phase_clock(schedule, step, left, seconds_per_step)
            if spent + seconds_per_step / 2 >= budget:
                end = Decision(step, "phase_end", phase.index, "its share of the hours is over")
                decided.append(end)
                schedule = schedule.with_decision(end)
    if schedule.phase_at(step + 1).kind != "unified":
        return decided
    planned = schedule.decay
    decay_steps = math.floor(schedule.config.schedule.decay_share * (step + affordable))
    if affordable <= decay_steps and (planned is None or planned[0] > step + 1):
        end = schedule.end_step
        length = affordable if end is None else min(affordable, end - step)
        decided.append(Decision(step, "decay_start", length, "the hours are nearly over"))
    return decided


def clock_progress(
    schedule: Schedule,
    step: int,
    *,
    elapsed: float,
    hours: float,
    seconds_per_step: float,
    save_seconds: float,
) -> tuple[float | None, float | None]:
    """`Schedule.progress` by the clock, for phases without a known last step.

    Arguments as in `clock_decisions`.
    """
    left = max(0.0, hours * 3600 - save_seconds - elapsed)
    run_progress = min(1.0, elapsed / (elapsed + left)) if elapsed + left > 0 else 1.0
    if step < 1 or schedule.phase_at(step).kind not in ("expert", "unified"):
        return None, run_progress
    spent, budget = _phase_clock(schedule, step, left, seconds_per_step, of=step)
    return (min(1.0, spent / budget) if budget > 0 else 1.0), run_progress


def _phase_clock(
    schedule: Schedule, step: int, left: float, seconds_per_step: float, of: int | None = None
) -> tuple[float, float]:
    """Seconds spent in the phase of step `of` (default: the next), and the phase's budget."""
    phase = schedule.phase_at(step + 1 if of is None else of)
    first = schedule.bounds(phase)[0]
    spent = 0.0 if first is None else max(0, step + 1 - first) * seconds_per_step
    remaining_share = sum(p.share for p in schedule.phases if p.index >= phase.index)
    return spent, (spent + left) * (phase.share / remaining_share if remaining_share else 0.0)


def _out_of_time(schedule: Schedule, step: int) -> list[Decision]:
    """End the run at once: there is no time left for a step."""
    end = schedule.end_step
    if schedule.decay_begun is not None or (end is not None and step >= end):
        return []
    reason = "the hours are over"
    return [*_end_experts(schedule, step, reason), Decision(step, "decay_start", 0, reason)]


def _shortened_decay(schedule: Schedule, step: int, affordable: int) -> list[Decision]:
    """An earlier end of the decay, if there is clearly too little time for its remaining steps."""
    end = schedule.end_step
    assert end is not None, "a decay has an end"
    excess = end - step - affordable
    # Step times vary by a tenth; reacting to that would add a decision every few steps.
    if excess <= 0 or (excess <= 0.1 * (end - step) and affordable > 0):
        return []
    return [Decision(step, "decay_end", step + affordable, "the hours are nearly over")]


def run_converged(schedule: Schedule, evaluations: Sequence[tuple[int, float]]) -> bool:
    """Whether the run ends by convergence; always False if max_steps or hours ends it.

    evaluations: (step, bits per byte) of the run, in order.
    """
    settings = schedule.config.schedule
    if settings.max_steps is not None or settings.hours is not None:
        return False
    first = schedule.bounds(schedule.phases[-2])[0] or 0
    unified = [entry for entry in evaluations if entry[0] >= first]
    return converged(unified, settings.converge_patience, settings.converge_delta)


def converged(history: Sequence[tuple[int, float]], patience: int, delta: float) -> bool:
    """Whether held-out loss has stopped falling: no progress in the last `patience` evaluations.

    history: (step, bits per byte) of the unified phase's evaluations, in order. Progress is a value
    at least `delta` below the best so far; a value that is not a number is no progress.
    """
    best, stale = math.inf, 0
    for _, value in history:
        if value < math.inf and (best == math.inf or (value <= best - delta and value < best)):
            best, stale = value, 0
        else:
            stale += 1
    return stale >= patience
