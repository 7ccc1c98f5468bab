"""The phases of a run, and the learning rate and data mix of every step.

Everything here is a pure function of the config, the step and the decisions in the journal; which
decisions are made is in `decisions`. Steps count from 1: step t is the t-th optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from engine.config import RunConfig


class ExpertLike(Protocol):
    """The properties of an expert that the plan depends on (see ExpertSpec)."""

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
    """Share of the budget, 0 to 1."""
    weight: float = 0.0
    """The expert's weight in the mix; 0 if the phase has no expert."""


class Decision(msgspec.Struct, frozen=True):
    """A decision by the clock, a measurement or the user; it applies to the steps after `step`.

    kind                       value
    phase_end                  index of the phase that ends with `step`
    decay_start                number of steps of the decay, which begins at step + 1 (0: the end)
    decay_end                  new last step of the current decay
    rollback                   factor on the learning rate; `step` is the restored checkpoint's
    micro_batch                micro-batch size
    activation_checkpointing   whether activations are recomputed in the backward pass
    device                     `cuda`, `mps` or `cpu`
    on_policy                  share of the rows that the student generates
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
    memory: int = 0
    """Of decisions that save memory: bytes that the job could use on the device; 0: unknown."""


def plan_phases(config: RunConfig, experts: Sequence[ExpertLike]) -> tuple[Phase, ...]:
    """Create, one phase for each expert in the given order, unified, save.

    The expert phases divide `schedule.expert_share` of the budget by weight (`experts.weights` of
    the config, else the expert's own weight); the unified phase gets the rest.
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

    The plan follows from `schedule.max_steps`, or from the token budgets if neither max_steps nor
    hours is set; with hours alone the ends are open until a decision by the clock. A decision in
    the journal overrides the plan, so a resume with another budget changes only future steps.
    """

    def __init__(
        self,
        config: RunConfig,
        phases: Sequence[Phase],
        decisions: Sequence[Decision] = (),
    ) -> None:
        self.config = config
        self.phases = tuple(phases)
        self.tokens_per_step = _tokens_per_step(config)
        """Student tokens of one optimizer step."""
        self.decisions = tuple(decisions)
        self._experts = [p for p in phases if p.kind == "expert"]
        self._create, self._unified, self._save = phases[0], phases[-2], phases[-1]
        self._knots = _decay_knots(self.decisions)
        planned = _plan_bounds(config, self.phases, {}, None)[self._unified.index][1]
        self._warmup = config.schedule.warmup_steps
        if planned is not None:
            # With a warmup longer than the run, the full learning rate would never be reached.
            self._warmup = min(self._warmup, planned // 10)
        ends = {int(d.value): d.step for d in decisions if d.kind == "phase_end"}
        run_end = self._knots[-1][1] if self._knots else None
        self._bounds = _plan_bounds(config, self.phases, ends, run_end)

    def with_decision(self, decision: Decision) -> Schedule:
        """This schedule with one more decision."""
        return Schedule(self.config, self.phases, (*self.decisions, decision))

    def bounds(self, phase: Phase) -> tuple[int | None, int | None]:
        """First and last step of a phase; None if not known; last < first if it has no steps."""
        return self._bounds[phase.index]

    @property
    def end_step(self) -> int | None:
        """Last step of the run; None if not known yet."""
        return self.bounds(self._unified)[1]

    @property
    def decay(self) -> tuple[int, int] | None:
        """First and last step of the decay; None if not known yet, or if there is none."""
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
        """Number of steps before the decay that the journal has; None if it has none."""
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

        The warmup reaches the full rate at its last step. It is at most a tenth of a run of known
        length (none below 10 steps), and ends where the decay begins. The decay is linear, from the
        full rate at the step before it to `min_lr_ratio` at the step after it.
        """
        schedule = self.config.schedule
        decay = self.decay
        warmup_step = step if decay is None else min(step, max(1, decay[0] - 1))
        factor = min(1.0, warmup_step / self._warmup) if self._warmup else 1.0
        if decay is not None:
            knots = self._knots or [(decay[0] - 1, decay[1])]
            factor *= _decayed(knots, step, schedule.min_lr_ratio)
        for decision in self.decisions:
            if decision.kind == "rollback" and decision.step < step:
                factor *= float(decision.value)
        return self.config.optimizer.lr * factor

    def mix_at(self, step: int) -> dict[str, float]:
        """Share of each expert in the rows of step `step`; the shares sum to 1.

        In an expert's phase its own text has the share 1 - replay, and the earlier experts divide
        the rest by weight. The unified phase (and later steps) mixes all experts by weight, or as
        the last `mix` decision has it.
        """
        phase = self.phase_at(step)
        if phase.kind != "expert":
            decided = self.setting_at(step, "mix")
            if decided is None:
                return _by_weight(self._experts, 1.0)
            return {n: float(s) for n, _, s in (p.partition("=") for p in str(decided).split(","))}
        earlier = [p for p in self._experts if p.index < phase.index]
        replay = self.config.schedule.replay if earlier else 0.0
        mix = _by_weight(earlier, replay) if replay else {}
        return {**mix, str(phase.expert): 1.0 - replay}

    def weight_shares(self) -> dict[str, float]:
        """Share of each expert by weight."""
        return _by_weight(self._experts, 1.0)

    def setting_at(
        self, step: int, kind: Literal["micro_batch", "activation_checkpointing", "device", "mix"]
    ) -> int | float | str | bool | None:
        """Value of the last decision of a kind that applies to `step`; None: as configured."""
        for decision in reversed(self.decisions):
            if decision.kind == kind and decision.step < step:
                return decision.value
        return None

    def round_at(self, step: int) -> int | None:
        """First step of the on-policy round that contains step `step`; None if there is none.

        A round begins after the decision for on-policy training, with each phase, and every
        `on_policy_interval` steps.
        """
        decided = next((d.step for d in self.decisions if d.kind == "on_policy"), None)
        if decided is None or step <= decided:
            return None
        first = max(decided + 1, self.bounds(self.phase_at(step))[0] or 0)
        return step - (step - first) % self.config.schedule.on_policy_interval

    def progress(self, step: int) -> tuple[float | None, float | None]:
        """Progress of phase and run after `step` steps, 0 to 1; None if the end is not known."""
        phase = self.phase_at(step)
        first, last = self.bounds(phase)
        phase_progress = None
        if phase.kind in ("create", "save"):
            phase_progress = 1.0 if phase.kind == "create" else 0.0
        elif first is not None and last is not None:
            phase_progress = (step - first + 1) / (last - first + 1)
        end = self.end_step
        run_progress = None if end is None else min(1.0, step / end) if end else 1.0
        return phase_progress, run_progress


def _tokens_per_step(config: RunConfig) -> int:
    return config.optimizer.global_batch_size * config.optimizer.max_seq_len


Bounds = dict[int, tuple[int | None, int | None]]
"""First and last step of each phase, by the phase's index."""


def _plan_bounds(
    config: RunConfig, phases: Sequence[Phase], ends: dict[int, int], run_end: int | None
) -> Bounds:
    """Bounds of every phase; `ends` (by phase) and `run_end` are fixed by decisions."""
    create, stepped, save = phases[0], phases[1:-1], phases[-1]
    bounds: Bounds = {create.index: (0, 0)}
    done: int | None = 0
    for i, phase in enumerate(stepped):
        fixed = run_end if phase.kind == "unified" else ends.get(phase.index)
        first = None if done is None else done + 1
        if fixed is not None:
            done = max(fixed, done or 0)
        elif done is not None:
            length = _planned_length(config, stepped, i, done)
            done = None if length is None else done + length
        bounds[phase.index] = (first, done)
    after = None if done is None else done + 1
    bounds[save.index] = (after, after)
    return bounds


def _planned_length(config: RunConfig, stepped: Sequence[Phase], i: int, done: int) -> int | None:
    """Planned steps of `stepped[i]`, which begins after `done` steps; None: no planned end."""
    schedule, phase = config.schedule, stepped[i]
    length: int | None = None
    if schedule.max_steps is not None:
        length = _split(max(0, schedule.max_steps - done), phase, stepped[i + 1 :])
    elif schedule.hours is None and phase.kind == "expert":
        experts = [p for p in stepped if p.kind == "expert"]
        mean = sum(p.weight for p in experts) / len(experts)
        steps = schedule.expert_tokens * phase.weight / mean / _tokens_per_step(config)
        length = math.ceil(round(steps, 6))  # weights are rounded: 15.000000002 is 15
    if phase.kind == "unified" and schedule.unified_tokens is not None:
        limit = math.ceil(schedule.unified_tokens / _tokens_per_step(config))
        length = limit if length is None else min(limit, length)
    return length


def _decay_knots(decisions: Sequence[Decision]) -> list[tuple[int, int]]:
    """(step, last step) of the decided decay, and of each change of its end."""
    knots: list[tuple[int, int]] = []
    for decision in decisions:
        if decision.kind == "decay_start":
            knots = [(decision.step, decision.step + int(decision.value))]
        elif decision.kind == "decay_end" and knots:
            # Decided again at an earlier step (after a rollback): replaces the later ones.
            kept = [k for k in knots[1:] if k[0] < decision.step]
            knots = [knots[0], *kept, (decision.step, int(decision.value))]
    return knots


def _split(left: int, phase: Phase, later: Sequence[Phase]) -> int:
    """Steps of `phase` if it and the `later` phases divide `left` steps by share.

    Rounded phase by phase on the steps that are left: the steps sum exactly, and deciding that a
    phase ends where it was planned to end does not change the plan of the later ones. Each phase
    with a share has at least one step if there are enough.
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
    """Factor of the decay at `step`: 1 before it, `floor` at the step after its last."""
    factor = 1.0
    for i, (start, last) in enumerate(knots):
        next_start = knots[i + 1][0] if i + 1 < len(knots) else None
        until = step if next_start is None else min(step, next_start)
        if until > start:
            progress = min(1.0, (until - start) / (last + 1 - start))
            factor += (floor - factor) * progress
        if next_start is None or step <= next_start:
            break
    return factor
