"""SmolLM2 in phi's format scores the first word of an answer as it would write it."""

from __future__ import annotations

import msgspec
import torch

from engine.chat_tools import answer_text
from engine.distill.align.blocks import BlockEncoder
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import teacher_encoder, teacher_forward
from engine.experts.registry import load_experts
from engine.text.examples import Example, Message, read_data_file
from engine.workspace import Workspace, assets_dir
from tests.support.paths import REPO
from tests.support.real_experts import expert_tokenizer
from tests.support.toys import byte_level, encoder_of


def first_words(count: int) -> list[Example]:
    """Questions of the demo's text, and the first word of their answers."""
    examples: list[Example] = []
    for example in read_data_file(assets_dir() / "conversations" / "demo.jsonl"):
        *_, question, answer = example.messages or ()
        word = answer_text(answer).split()[0]
        if question.role == "user" and word.isalpha():
            messages = Message("user", question.content), Message("assistant", word)
            examples.append(Example(messages=messages, complete=False))
    return examples[:: max(1, len(examples) // count)][:count]


def test_the_first_word_costs_as_much_as_when_it_is_written():
    expert_tokenizer("smollm2")  # skips the test where it was not downloaded
    spec = load_experts(Workspace.find(str(REPO)))["smollm2"]
    phi = msgspec.structs.replace(spec, chat="phi")
    teacher = load_teacher(REPO / "tmp" / "models" / "smollm2", phi, "cpu", torch.float32)
    encoder = BlockEncoder(encoder_of(byte_level()), teacher_encoder(teacher), 512)
    examples = first_words(5)
    blocks = [block for example in examples for block in encoder.encode(example).blocks]
    assert len(blocks) == len(examples)
    scored = teacher_forward(teacher, blocks).token_nats(64).sum().item() / len(blocks)
    written = 0.0
    for example in examples:
        question, answer = example.messages or ()
        prompt = teacher.encode_prompt([question])
        ids = [*prompt, *teacher.tokenizer.encode(" " + answer.content, add_special_tokens=False)]
        with torch.no_grad():
            log_p = teacher.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        positions = range(len(prompt), len(ids))
        written -= sum(float(log_p[n - 1, ids[n]]) for n in positions) / len(examples)
    assert abs(scored - written) < 0.02
    # After a lone space the same words cost about twice as much.
    assert scored < 9
