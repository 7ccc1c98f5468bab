"""Owns the capability table: how many held-out prompts of each capability the student, and each
expert, answers rightly, as the checkers of `engine.data` say.

Answers are greedy and short, the prompts the same at every evaluation and for everybody. Nothing
here draws a random number or changes a weight: with and without it, a run is the same run.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.distill.teacher.teacher import Answer, Teacher
from engine.events import STUDENT, CapabilitiesScored, CapabilityScore
from engine.experts.registry import CAPABILITIES, ExpertSpec
from engine.prompts.answers import is_open
from engine.prompts.checkers import VERSION, judge
from engine.prompts.prompt import Prompt, nfc
from engine.prompts.variants.generate import evaluation_prompts
from engine.workspace import write_bytes

_BATCH = 16


def choose_measured(
    encode: Callable[[Prompt], int], capabilities: Sequence[str], count: int, room: int
) -> list[Prompt]:
    """Up to `count` prompts of each capability that take at most `room` tokens to read.

    `encode` tells how many tokens the student reads of a prompt: what does not fit into its
    context is put to nobody.
    """
    chosen: list[Prompt] = []
    for capability in capabilities:
        fitting = (prompt for prompt in evaluation_prompts(capability) if encode(prompt) <= room)
        chosen += [prompt for _, prompt in zip(range(count), fitting, strict=False)]
    return chosen


def student_prompts(
    tokenizer: PreTrainedTokenizerFast,
    experts: Sequence[ExpertSpec],
    count: int,
    max_tokens: int,
    context: int,
) -> list[Prompt]:
    """What is put to this student: `count` prompts of each capability that its experts teach."""
    if not count:
        return []
    taught = {name for spec in experts for name in spec.capabilities}
    capabilities = [name for name in CAPABILITIES if name in taught]

    def length(prompt: Prompt) -> int:
        chat = [{"role": m.role, "content": m.content} for m in prompt.messages]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return len(tokenizer(str(text), add_special_tokens=False).input_ids)

    return choose_measured(length, capabilities, count, context - max_tokens - 1)


def score(
    teacher: Teacher,
    prompts: Sequence[Prompt],
    max_tokens: int,
    beat: Callable[[str], None],
    who: str,
) -> CapabilitiesScored:
    """Lets a model answer the prompts greedily, and counts what is right by capability."""
    began = time.monotonic()
    answers = teacher.generate(
        [prompt.messages for prompt in prompts],
        max_new_tokens=max_tokens,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        batch_size=_BATCH,
        beat=beat,
    )
    right: dict[str, list[bool]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        beat("judging answers")
        right.setdefault(prompt.capability, []).append(is_right(prompt, answer))
    return CapabilitiesScored(
        who=who,
        scores=tuple(
            CapabilityScore(capability=name, right=sum(found), asked=len(found))
            for name, found in right.items()
        ),
        seconds=time.monotonic() - began,
    )


def is_right(prompt: Prompt, answer: Answer) -> bool:
    """Whether no checker objects; an open text may be cut at the limit, which is a short one."""
    complete = answer.complete or is_open(prompt)
    asked = [m.content for m in prompt.messages if m.role == "user"]
    return judge((nfc(answer.text),), complete, asked, prompt.check) == ""


def score_student(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    max_tokens: int,
    dtype: torch.dtype,
    beat: Callable[[str], None],
) -> CapabilitiesScored:
    """The student's row, matrix products in `dtype`; it is in training mode again afterwards."""
    spec = ExpertSpec(
        name=STUDENT,
        title="The student",
        source="folder",
        repo="",
        end_tokens=(str(tokenizer.eos_token),),
    )
    half = dtype != torch.float32
    device = model.device.type
    model.eval()
    try:
        with torch.autocast(device, dtype=dtype) if half else nullcontext():
            return score(Teacher(model, tokenizer, spec), prompts, max_tokens, beat, STUDENT)
    finally:
        model.train()


def score_expert(
    folder: Path,
    expert: str,
    state: str,
    prompts: Sequence[Prompt],
    max_tokens: int,
    load: Callable[[], Teacher],
    beat: Callable[[str], None],
) -> CapabilitiesScored:
    """An expert's row; once counted it is kept in `folder`, and the expert need not be loaded.

    `state` tells one state of the expert's files from another. Only what the expert is there for
    is put to it.
    """
    content = [VERSION, state, max_tokens, [(p.messages, p.check) for p in prompts]]
    digest = hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()[:16]
    path = folder / f"capabilities-{digest}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=CapabilitiesScored)
    except (OSError, msgspec.MsgspecError):
        pass  # not counted yet, or torn: it is counted now
    row = score(load(), prompts, max_tokens, beat, expert)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, msgspec.json.encode(row))
    return row
