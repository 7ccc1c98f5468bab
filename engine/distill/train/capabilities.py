"""Capability scores: how many held-out prompts of each capability the student and each expert
answer correctly, as the checkers of `engine.prompts` decide.

Answers are greedy and short, and the prompts are the same at every evaluation. No random numbers
are drawn and no weights change, so that a run is the same with and without the scores.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.chat import render_chat
from engine.distill.student import student_generator
from engine.events import STUDENT, CapabilitiesScored, CapabilityScore
from engine.experts.registry import CAPABILITIES, ExpertSpec
from engine.generation import Answer, Generator
from engine.prompts.answers import is_open
from engine.prompts.checkers import VERSION, judge
from engine.prompts.prompt import Prompt, nfc
from engine.prompts.variants.generate import evaluation_prompts
from engine.small_files import Damaged, read_json
from engine.workspace import write_bytes

_BATCH_SIZE = 16


def choose_measured(
    prompt_length: Callable[[Prompt], int],
    capabilities: Sequence[str],
    count: int,
    max_prompt_tokens: int,
) -> list[Prompt]:
    """Up to `count` held-out prompts of each capability of at most `max_prompt_tokens` tokens.

    prompt_length: number of the student's tokens in a prompt. Prompts that do not fit into the
    student's context are left out for all models.
    """
    chosen: list[Prompt] = []
    for capability in capabilities:
        fitting = (
            p for p in evaluation_prompts(capability) if prompt_length(p) <= max_prompt_tokens
        )
        chosen += islice(fitting, count)
    return chosen


def student_prompts(
    tokenizer: PreTrainedTokenizerFast,
    experts: Sequence[ExpertSpec],
    count: int,
    max_new_tokens: int,
    context: int,
) -> list[Prompt]:
    """`count` held-out prompts of each capability that the student's experts teach."""
    if not count:
        return []
    taught = {name for spec in experts for name in spec.capabilities}
    capabilities = [name for name in CAPABILITIES if name in taught]

    def prompt_length(prompt: Prompt) -> int:
        text = render_chat(tokenizer, prompt.messages)
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    return choose_measured(prompt_length, capabilities, count, context - max_new_tokens - 1)


def score(
    generator: Generator,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    heartbeat: Callable[[str], None],
    name: str,
) -> CapabilitiesScored:
    """Greedy answers of one model to the prompts, and the number of correct ones by capability."""
    began = time.monotonic()
    answers = generator.generate(
        [prompt.messages for prompt in prompts],
        max_new_tokens=max_new_tokens,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        batch_size=_BATCH_SIZE,
        heartbeat=heartbeat,
    )
    correct: dict[str, list[bool]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        heartbeat("checking answers")
        reason = reason_of(prompt, answer)
        if reason != "code_not_run":  # says nothing about the answer
            correct.setdefault(prompt.capability, []).append(reason == "")
    return CapabilitiesScored(
        who=name,
        scores=tuple(
            CapabilityScore(capability=capability, right=sum(results), asked=len(results))
            for capability, results in correct.items()
        ),
        seconds=time.monotonic() - began,
    )


def is_right(prompt: Prompt, answer: Answer) -> bool:
    """Whether the checkers accept the answer."""
    return reason_of(prompt, answer) == ""


def reason_of(prompt: Prompt, answer: Answer) -> str:
    """Why the checkers do not accept the answer, "" if they do; an open text may be cut at the
    short token limit."""
    complete = answer.complete or is_open(prompt)
    questions = [m.content for m in prompt.messages if m.role == "user"]
    return judge((nfc(answer.text),), complete, questions, prompt.check)


def score_student(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    dtype: torch.dtype,
    heartbeat: Callable[[str], None],
) -> CapabilitiesScored:
    """The student's scores, with matrix products in `dtype`; leaves the model in training mode."""
    model.eval()
    try:
        generator = student_generator(model, tokenizer, dtype)
        return score(generator, prompts, max_new_tokens, heartbeat, STUDENT)
    finally:
        model.train()


def score_expert(
    folder: Path,
    expert: str,
    expert_digest: str,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    load: Callable[[], Generator],
    heartbeat: Callable[[str], None],
) -> CapabilitiesScored:
    """An expert's scores, read from `folder` where they are cached; else loads the expert.

    expert_digest: identifies the expert's files and precision. The prompts are those of the
    capabilities that this expert teaches.
    """
    content = [VERSION, expert_digest, max_new_tokens, [(p.messages, p.check) for p in prompts]]
    digest = hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]
    path = folder / f"capabilities-{digest}.json"
    try:
        return read_json(path, CapabilitiesScored)
    except (OSError, Damaged):
        pass  # absent or cut short: score it now
    scores = score(load(), prompts, max_new_tokens, heartbeat, expert)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, msgspec.json.encode(scores))
    return scores
