"""Count the held-out prompts of each capability that the model answers correctly, and report the
scores of the experts in the newest training run for comparison.

Prompts and rules are those of the training run's own evaluations
(`engine.distill.train.capabilities`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.distill.train.capabilities import choose_measured, is_right
from engine.events import STUDENT, CapabilitiesScored, CapabilityScore, CheckDone, RunStarted
from engine.experts.registry import CAPABILITIES
from engine.generation import Answer
from engine.prompts.prompt import Prompt
from engine.run.history import History
from engine.validate.check import Check, quality_row
from engine.validate.context import CheckContext
from engine.workspace import Workspace

_NAME, _TITLE = "abilities", "capability scores"

ExpertScores = Mapping[str, Mapping[str, CapabilityScore]]
"""Score by expert and capability."""


@dataclass(frozen=True)
class RunSettings:
    """Settings and expert scores of the newest training run of the workspace.

    Attributes:
        prompts: prompts of each capability.
        max_new_tokens: of an answer.
        max_seq_len: of the run; None where there is no run.
        experts: the scores of the run's experts.
    """

    prompts: int = 4
    max_new_tokens: int = 64
    max_seq_len: int | None = None
    experts: ExpertScores = field(default_factory=dict)


def read_run_settings(workspace: Workspace) -> RunSettings:
    """The settings and expert scores of the newest training run, or else the defaults."""
    history = History(workspace.history_file)
    try:
        run = history.last_run("train")
        if run is None:
            return RunSettings()
        events = history.events(run.run_id, types=("RunStarted", "CapabilitiesScored"), limit=64)
    finally:
        history.close()
    config = next((event.config for event in events if isinstance(event, RunStarted)), {})
    schedule, optimizer = config.get("schedule", {}), config.get("optimizer", {})
    return RunSettings(
        prompts=schedule.get("capability_prompts") or RunSettings.prompts,
        max_new_tokens=schedule.get("capability_tokens") or RunSettings.max_new_tokens,
        max_seq_len=optimizer.get("max_seq_len"),
        experts={
            event.who: {score.capability: score for score in event.scores}
            for event in events
            if isinstance(event, CapabilitiesScored) and event.who != STUDENT
        },
    )


def check_capabilities(context: CheckContext) -> CheckDone:
    """The share of correct answers. It has no bound: what is good depends on the experts."""
    settings = read_run_settings(context.workspace)
    context_length = context.model.context_length
    longest = min(context_length, settings.max_seq_len or context_length)

    def prompt_length(prompt: Prompt) -> int:
        return len(context.generator.encode_prompt(prompt.messages))

    prompts = choose_measured(
        prompt_length, CAPABILITIES, settings.prompts, longest - settings.max_new_tokens - 1
    )
    if not prompts:
        reason = "None of the held-out prompts fits into the model's context."
        return CHECK.skipped(reason)
    answers = context.generator.answer(
        [prompt.messages for prompt in prompts],
        settings.max_new_tokens,
        "answering held-out prompts",
    )
    correct: dict[str, list[bool]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        context.heartbeat("checking answers")  # running an answer's code takes a moment
        result = is_right(prompt, Answer(answer.text, answer.complete))
        correct.setdefault(prompt.capability, []).append(result)
    total = sum(map(sum, correct.values()))
    return quality_row(
        _NAME,
        _TITLE,
        value=f"{total} of {len(prompts)} prompts",
        meaning="Held-out prompts of each capability that the model answers correctly, as far as "
        "rules can tell, next to the experts' scores in the newest run of this workspace.",
        detail="\n".join(
            _line(capability, results, settings.experts) for capability, results in correct.items()
        ),
        number=total / len(prompts),
    )


def _line(capability: str, results: list[bool], experts: ExpertScores) -> str:
    """The scores of one capability: the model's, then those of the experts that teach it."""
    scores = {name: row[capability] for name, row in experts.items() if capability in row}
    taught = " · ".join(f"{name} {score.right}/{score.asked}" for name, score in scores.items())
    own = f"{capability.replace('_', ' '):<13}{sum(results):>3}/{len(results)}"
    return f"{own}  {taught}".rstrip()


CHECK = Check(group="quality", name=_NAME, title=_TITLE, run=check_capabilities)
