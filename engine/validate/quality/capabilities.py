"""Owns the table of abilities in a validation: how many held-out prompts of each capability a model
answers rightly, beside what the experts of its run answered.

The prompts and the rules are those of the training run's evaluations (`distill.capabilities`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.distill.train.capabilities import choose_measured, is_right
from engine.events import STUDENT, CapabilitiesScored, CapabilityScore, CheckDone, RunStarted
from engine.experts.registry import CAPABILITIES
from engine.generation import Answer
from engine.prompts.prompt import Prompt
from engine.run.history import History
from engine.validate.checks.check import row, skipped
from engine.validate.quality.writer import Writer
from engine.workspace import Workspace

_PROMPTS, _TOKENS = 4, 64
"""Of each capability, and of an answer, where no run of this root says otherwise."""

Experts = Mapping[str, Mapping[str, CapabilityScore]]


def asked_in_run(ws: Workspace) -> tuple[int, int, int | None, Experts]:
    """(prompts of each capability, tokens of an answer, longest row, what each expert answered), as
    the newest training run of the root had them."""
    history = History(ws.history_file)
    try:
        record = history.last_run("train")
        if record is None:
            return _PROMPTS, _TOKENS, None, {}
        found = history.events(record.run_id, types=("RunStarted", "CapabilitiesScored"), limit=64)
    finally:
        history.close()
    config = next((event.config for event in found if isinstance(event, RunStarted)), {})
    schedule, optimizer = config.get("schedule", {}), config.get("optimizer", {})
    experts = {
        event.who: {score.capability: score for score in event.scores}
        for event in found
        if isinstance(event, CapabilitiesScored) and event.who != STUDENT
    }
    return (
        schedule.get("capability_prompts") or _PROMPTS,
        schedule.get("capability_tokens") or _TOKENS,
        optimizer.get("max_seq_len"),
        experts,
    )


def check_abilities(
    writer: Writer, ws: Workspace, context: int, beat: Callable[[str], None]
) -> CheckDone:
    """The row; told, not judged: what is much depends on the experts."""
    count, tokens, longest, experts = asked_in_run(ws)

    def length(prompt: Prompt) -> int:
        return len(writer.prompt_ids(_chat(prompt)))

    room = min(context, longest or context) - tokens - 1
    prompts = choose_measured(length, CAPABILITIES, count, room)
    if not prompts:
        why = "None of the held-out prompts fits into the model's context."
        return skipped("quality", "abilities", "abilities", why)
    answers = writer.write([_chat(p) for p in prompts], tokens, "answers held-out prompts")
    right: dict[str, list[bool]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        beat("judging answers")  # code takes a moment to run
        found = is_right(prompt, Answer(answer.text, answer.ended))
        right.setdefault(prompt.capability, []).append(found)
    total = sum(map(sum, right.values()))
    lines = [
        "  ".join([f"{name.replace('_', ' '):<13}{sum(own):>3}/{len(own)}", _taught(experts, name)])
        for name, own in right.items()
    ]
    return row(
        "quality",
        "abilities",
        "abilities",
        True,
        f"{total} of {len(prompts)} prompts",
        "How many held-out prompts of each capability are answered rightly, as rules can tell; "
        "experts: as they answered in the newest run here.",
        detail="\n".join(line.rstrip() for line in lines),
        number=total / len(prompts),
    )


def _chat(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _taught(experts: Experts, capability: str) -> str:
    found = {name: row[capability] for name, row in experts.items() if capability in row}
    return " · ".join(f"{name} {score.right}/{score.asked}" for name, score in found.items())
