"""Owns the plan of a run: its phases, and the learning rate and the mix of every step.

All of it is a pure function of the config, the step and the journalled decisions: no clock is read
and nothing is remembered here. Times come in as arguments; what they lead to goes out as decisions
that the trainer journals before it acts on them.

Steps count from 1: step t is the t-th optimizer step. `step` as an argument of a decision function
is the number of steps completed, and its decisions hold from the next one on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from engine.config import RunConfig


class ExpertLike(Protocol):
    """What the plan needs to know of an expert (ExpertSpec has it)."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def weight(self) -> float: ...


class Phase(msgspec.Struct, frozen=True):
    """One phase of a run."""

    index: int
    name: str
    kind: Literal["create", "expert", "unified", "save"]
    expert: str | None
    share: float
    """Share of the whole budget, 0 to 1."""
    weight: float = 0.0
    """The expert's weight in the mix (0 where there is no expert)."""


class Decision(msgspec.Struct, frozen=True):
    """What the clock, a measurement or a person decided; it holds for the steps after `step`.

    kind                       value
    phase_end                  index of the phase whose last step `step` is
    decay_start                number of steps of the decay, which begins at step + 1 (0: the end)
    decay_end                  last step of the decay under way, in place of the planned one
    rollback                   factor on the learning rate; `step` is the checkpoint gone back to
    micro_batch                rows that go through the model at once
    activation_checkpointing   whether activations are made again in the backward pass
    device                     `cuda`, `mps` or `cpu`
    on_policy                  share of the rows that the student writes itself
    mix                        shares of the unified phase, `expert=share,...`
    """

    step: int
    kind: Literal[
        "phase_end",
        "decay_start",
        "decay_end",
        "rollback",
        "micro_batch",
        "activation_checkpointing",
        "device",
        "on_policy",
        "mix",
    ]
    value: int | float | str | bool
    reason: str = ""


def plan_phases(config: RunConfig, experts: Sequence[ExpertLike]) -> tuple[Phase, ...]:
    """Create, one phase for each expert in the order given, unified, save.

    The experts' phases have `schedule.expert_share` of the budget between them, by weight
    (`config.experts.weights` before the expert's own); the unified phase has the rest.
    """
    weights = [config.experts.weights.get(e.name, e.weight) for e in experts]
    total = sum(weights)
    share = config.schedule.expert_share
    phases = [Phase(0, "Create the student", "create", None, 0.0)]
    for expert, weight in zip(experts, weights, strict=True):
        phases.append(
            Phase(len(phases), expert.title, "expert", expert.name, share * weight / total, weight)
        )
    phases.append(Phase(len(phases), "All experts", "unified", None, 1 - share))
    phases.append(Phase(len(phases), "Save the model", "save", None, 0.0))
    return tuple(phases)


class Schedule:
    """Phase, learning rate and mix of every step; immutable.

    The plan follows from `schedule.max_steps`, or from the token budgets where neither max_steps
    nor hours is given; with hours alone the ends are open until the clock decides them. A
    journalled decision always wins over the plan, so a resume with another budget moves only what
    is still to come.

    tokens_per_step: student tokens of one optimizer step (global_batch_size x max_seq_len).
    """

    def __init__(
        self,
        config: RunConfig,
        phases: Sequence[Phase],
        tokens_per_step: int,
        decisions: Sequence[Decision] = (),
    ) -> None:
        self.config = config
        self.phases = tuple(phases)
        self.tokens_per_step = tokens_per_step
        self.decisions = tuple(decisions)
        self._experts = [p for p in phases if p.kind == "expert"]
        self._create, self._unified, self._save = phases[0], phases[-2], phases[-1]
        self._knots = self._decay_knots()
        planned = self._plan({}, None)[self._unified.index][1]
        self._warmup = config.schedule.warmup_steps
        if planned is not None:
            # A warmup longer than the run would keep the learning rate from ever being reached.
            self._warmup = min(self._warmup, planned // 10)
        ends = {int(d.value): d.step for d in decisions if d.kind == "phase_end"}
        self._bounds = self._plan(ends, self._knots[-1][1] if self._knots else None)

    def with_decision(self, decision: Decision) -> Schedule:
        """This schedule with one more decision."""
        return Schedule(self.config, self.phases, self.tokens_per_step, (*self.decisions, decision))

    def bounds(self, phase: Phase) -> tuple[int | None, int | None]:
        """First and last step of a phase; None while not known; last < first where it has none."""
        return self._bounds[phase.index]

    @property
    def end_step(self) -> int | None:
        """Last step of the run; None while not known."""
        return self.bounds(self._unified)[1]

    @property
    def decay(self) -> tuple[int, int] | None:
        """First and last step of the decay; None while not known, or where there is none."""
        if self._knots:
            first, last = self._knots[0][0] + 1, self._knots[-1][1]
        else:
            unified_first, end = self.bounds(self._unified)
            share = self.config.schedule.decay_share
            if unified_first is None or end is None or share == 0:
                return None
            first, last = max(unified_first, end + 1 - max(1, round(share * end))), end
        return (first, last) if first <= last else None

    @property
    def decay_begun(self) -> int | None:
        """Steps before the journalled decay; None while none is journalled."""
        return self._knots[0][0] if self._knots else None

    def phase_at(self, step: int) -> Phase:
        """The phase of optimizer step `step`: create below 1, save after the last one."""
        if step < 1:
            return self._create
        for phase in (*self._experts, self._unified):
            first, last = self.bounds(phase)
            if first is not None and first <= step and (last is None or step <= last):
                return phase
        return self._save

    def lr_at(self, step: int) -> float:
        """Learning rate of step `step`: warmup, stable, decay, times the rollbacks' factors.

        The warmup rises to the full rate at its last step; it is at most a tenth of a run whose
        length is planned (none below 10 steps), and stands still once the decay begins. The decay
        falls in a straight line, from the full rate at the step before it to `min_lr_ratio` at
        the step after it.
        """
        schedule = self.config.schedule
        decay = self.decay
        warmed = step if decay is None else min(step, max(1, decay[0] - 1))
        factor = min(1.0, warmed / self._warmup) if self._warmup else 1.0
        if decay is not None:
            knots = self._knots or [(decay[0] - 1, decay[1])]
            factor *= _decayed(knots, step, schedule.min_lr_ratio)
        for decision in self.decisions:
            if decision.kind == "rollback" and decision.step < step:
                factor *= float(decision.value)
        return self.config.optimizer.lr * factor

    def mix_at(self, step: int) -> dict[str, float]:
        """Share of each expert in the rows of step `step`; they sum to 1.

        An expert's phase has 1 - replay of its own text, and the earlier experts' share the rest
        by weight; the unified phase (and what comes after it) mixes all by weight.
        """
        phase = self.phase_at(step)
        if phase.kind != "expert":
            decided = self._decided(step, "mix")
            if decided is None:
                return _by_weight(self._experts, 1.0)
            return {n: float(s) for n, _, s in (p.partition("=") for p in str(decided).split(","))}
        earlier = [p for p in self._experts if p.index < phase.index]
        replay = self.config.schedule.replay if earlier else 0.0
        mix = _by_weight(earlier, replay) if replay else {}
        return {**mix, str(phase.expert): 1.0 - replay}

    def weight_shares(self) -> dict[str, float]:
        """Share of each expert by weight alone."""
        return _by_weight(self._experts, 1.0)

    def setting_at(
        self, step: int, kind: Literal["micro_batch", "activation_checkpointing", "device"]
    ) -> int | float | str | bool | None:
        """The value decided last for `kind` that holds at step `step`; None: as configured."""
        return self._decided(step, kind)

    def _decided(self, step: int, kind: str) -> int | float | str | bool | None:
        for decision in reversed(self.decisions):
            if decision.kind == kind and decision.step < step:
                return decision.value
        return None

    def round_at(self, step: int) -> int | None:
        """First step of the on-policy round that step `step` belongs to; None where there is none.

        Rounds begin when they are decided, with each phase, and every `on_policy_interval` steps.
        """
        begun = next((d.step for d in self.decisions if d.kind == "on_policy"), None)
        if begun is None or step <= begun:
            return None
        first = max(begun + 1, self.bounds(self.phase_at(step))[0] or 0)
        return step - (step - first) % self.config.schedule.on_policy_interval

    def progress(self, step: int) -> tuple[float | None, float | None]:
        """How far the phase of step `step` and the run are after it, 0 to 1; None: end unknown."""
        phase = self.phase_at(step)
        first, last = self.bounds(phase)
        of_phase = None
        if phase.kind in ("create", "save"):
            of_phase = 1.0 if phase.kind == "create" else 0.0
        elif first is not None and last is not None:
            of_phase = (step - first + 1) / (last - first + 1)
        end = self.end_step
        of_run = None if end is None else min(1.0, step / end) if end else 1.0
        return of_phase, of_run

    def _plan(
        self, ends: dict[int, int], run_end: int | None
    ) -> dict[int, tuple[int | None, int | None]]:
        """Bounds of every phase; `ends` and `run_end` are what decisions have fixed."""
        bounds: dict[int, tuple[int | None, int | None]] = {self._create.index: (0, 0)}
        done: int | None = 0
        stepped = [*self._experts, self._unified]
        for place, phase in enumerate(stepped):
            fixed = run_end if phase is self._unified else ends.get(phase.index)
            first = None if done is None else done + 1
            if fixed is not None:
                done = max(fixed, done or 0)
            elif done is not None:
                length = self._length(phase, stepped[place + 1 :], done)
                done = None if length is None else done + length
            bounds[phase.index] = (first, done)
        after = None if done is None else done + 1
        bounds[self._save.index] = (after, after)
        return bounds

    def _length(self, phase: Phase, later: Sequence[Phase], done: int) -> int | None:
        """Planned steps of a phase that begins after `done` steps; None: open."""
        schedule = self.config.schedule
        length: int | None = None
        if schedule.max_steps is not None:
            length = _split(max(0, schedule.max_steps - done), phase, later)
        elif schedule.hours is None and phase.kind == "expert":
            mean = sum(p.weight for p in self._experts) / len(self._experts)
            steps = schedule.expert_tokens * phase.weight / mean / self.tokens_per_step
            length = math.ceil(round(steps, 6))  # weights are rounded: 15.000000002 means 15
        if phase.kind == "unified" and schedule.unified_tokens is not None:
            most = math.ceil(schedule.unified_tokens / self.tokens_per_step)
            length = most if length is None else min(most, length)
        return length

    def _decay_knots(self) -> list[tuple[int, int]]:
        """(step, last step) of the journalled decay and of each change of its end."""
        knots: list[tuple[int, int]] = []
        for decision in self.decisions:
            if decision.kind == "decay_start":
                knots = [(decision.step, decision.step + int(decision.value))]
            elif decision.kind == "decay_end" and knots:
                # Decided again at an earlier step (after a rollback): it replaces the later ones.
                kept = [k for k in knots[1:] if k[0] < decision.step]
                knots = [knots[0], *kept, (decision.step, int(decision.value))]
        return knots


def _split(left: int, phase: Phase, later: Sequence[Phase]) -> int:
    """Steps of `phase` when it and the `later` ones share `left` steps.

    Rounded phase by phase on what is left, so that the steps sum exactly, and so that fixing a
    phase where it was planned to end leaves the plan of the later ones as it was. Each phase with
    a share has at least one step where there are enough.
    """
    total = phase.share + sum(p.share for p in later)
    if total <= 0 or phase.share <= 0:
        return 0
    steps = round(left * (phase.share / total))
    others = sum(p.share > 0 for p in later)
    if left > others:
        steps = min(max(steps, 1), left - others)
    return steps


def _by_weight(phases: Sequence[Phase], share: float) -> dict[str, float]:
    total = sum(p.weight for p in phases)
    return {str(p.expert): share * p.weight / total for p in phases}


def _decayed(knots: Sequence[tuple[int, int]], step: int, floor: float) -> float:
    """Factor of the decay at `step`: from 1, towards `floor` at the step after the last."""
    level = 1.0
    for place, (begun, last) in enumerate(knots):
        following = knots[place + 1][0] if place + 1 < len(knots) else None
        until = step if following is None else min(step, following)
        if until > begun:
            passed = min(1.0, (until - begun) / (last + 1 - begun))
            level += (floor - level) * passed
        if following is None or step <= following:
            break
    return level


def due_decisions(schedule: Schedule, step: int) -> list[Decision]:
    """What the plan itself settles after `step` steps: ends of phases, and the decay's beginning.

    Journalled, they stay where they were even when a later resume has another budget.
    """
    settled = {int(d.value) for d in schedule.decisions if d.kind == "phase_end"}
    due = []
    for phase in schedule.phases:
        last = schedule.bounds(phase)[1]
        if phase.kind != "expert" or phase.index in settled or last is None or last > step:
            continue
        due.append(Decision(last, "phase_end", phase.index, "its steps are done"))
    decay = schedule.decay
    if decay is not None and schedule.decay_begun is None and decay[0] <= step + 1:
        length = decay[1] - decay[0] + 1
        due.append(Decision(decay[0] - 1, "decay_start", length, "the end of the run is near"))
    return due


def on_policy_decision(schedule: Schedule, step: int, run_progress: float | None) -> list[Decision]:
    """After `step` steps: the student's own writing is learnt from when its share of the run is
    over; where no end is known (`run_progress` None), when the unified phase begins."""
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
    """With `schedule.mix = "deficits"`: the unified phase's shares after an evaluation.

    An expert's share is its weight times its deficit (what the student lacks of it, such as
    held-out KL), between half and twice its weight's share, so that none is forgotten. Nothing
    where a deficit is not known, or was decided at this step already.
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
    wanted = {name: shares[name] * float(known[name] or 0.0) for name in shares}
    total = sum(wanted.values())
    bounded = {
        name: min(2 * shares[name], max(shares[name] / 2, wanted[name] / total)) for name in shares
    }
    total = sum(bounded.values())
    value = ",".join(f"{name}={share / total:.4f}" for name, share in bounded.items())
    return [Decision(step, "mix", value, "by what the student lacks of each expert")]


def finish_decision(
    schedule: Schedule, step: int, reason: str = "asked to finish"
) -> list[Decision]:
    """After `step` steps, go to the end: expert phases are over, the decay begins at the next step.

    It takes `decay_share` of the steps so far (at least one; none where the share is 0), and never
    reaches past the planned end. Nothing when the decay has begun or the run is over. Convergence
    uses it too, with its own reason.
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
    """What `--hours` decides after `step` steps.

    The time that is left, less the final save, is shared out anew at every call: the phase under
    way ends when it has had its share of its own time and what is left. Time that went elsewhere
    (scoring, a slower device) is thus borne by all. The decay begins when what is left is
    `decay_share` of the training, and is cut short when it turns out too long.

    elapsed: unpaused seconds of the whole run, all attempts. seconds_per_step: a recent mean,
    evaluations included; 0 while not measured. save_seconds: kept free for the final save.
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
    wanted = math.floor(schedule.config.schedule.decay_share * (step + affordable))
    if affordable <= wanted and (planned is None or planned[0] > step + 1):
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
    """Schedule.progress after `step` steps by the clock, for phases whose last step is open."""
    left = max(0.0, hours * 3600 - save_seconds - elapsed)
    of_run = min(1.0, elapsed / (elapsed + left)) if elapsed + left > 0 else 1.0
    if step < 1 or schedule.phase_at(step).kind not in ("expert", "unified"):
        return None, of_run
    spent, budget = _phase_clock(schedule, step, left, seconds_per_step, of=step)
    return (min(1.0, spent / budget) if budget > 0 else 1.0), of_run


def _phase_clock(
    schedule: Schedule, step: int, left: float, seconds_per_step: float, of: int | None = None
) -> tuple[float, float]:
    """Seconds spent in the phase of step `of` (default: the next), and its budget of seconds."""
    phase = schedule.phase_at(step + 1 if of is None else of)
    first = schedule.bounds(phase)[0]
    spent = 0.0 if first is None else max(0, step + 1 - first) * seconds_per_step
    coming = sum(p.share for p in schedule.phases if p.index >= phase.index)
    return spent, (spent + left) * (phase.share / coming if coming else 0.0)


def _out_of_time(schedule: Schedule, step: int) -> list[Decision]:
    """The end at once: no time is left, not even for one step."""
    end = schedule.end_step
    if schedule.decay_begun is not None or (end is not None and step >= end):
        return []
    reason = "the hours are over"
    return [*_end_experts(schedule, step, reason), Decision(step, "decay_start", 0, reason)]


def _shortened_decay(schedule: Schedule, step: int, affordable: int) -> list[Decision]:
    """A nearer end of the decay when the time left holds clearly fewer steps than it has left."""
    end = schedule.end_step
    assert end is not None, "a decay has an end"
    missing = end - step - affordable
    # A tenth is the noise of step times; deciding on it would journal something every few steps.
    if missing <= 0 or (missing <= 0.1 * (end - step) and affordable > 0):
        return []
    return [Decision(step, "decay_end", step + affordable, "the hours are nearly over")]


def converged(history: Sequence[tuple[int, float]], patience: int, delta: float) -> bool:
    """Whether held-out loss has stopped falling: the last `patience` evaluations brought nothing.

    history: (step, bits per byte) of the unified phase's evaluations, in order. Progress is a fall
    of at least `delta` below the best so far; what is not a number is no progress.
    """
    best, stale = math.inf, 0
    for _, value in history:
        if value < math.inf and (best == math.inf or (value <= best - delta and value < best)):
            best, stale = value, 0
        else:
            stale += 1
    return stale >= patience
