"""Conversations of all kinds, scored with the real tokenizers and chat templates of public models:
what is scored, turned back into bytes, is what has to be learnt.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distill.align.blocks import BlockEncoder
from engine.text.examples import Example, Message
from tests.support.conversations import Conversations, check_round_trip
from tests.support.real_experts import EXPERTS, as_student, expert_encoder
from tests.support.toys import byte_level, encoder_of

FAST = 16
FAST_EXPERTS = [name for name in EXPERTS if name not in ("smollm2", "mistral")]
EACH = 200
"""Conversations for each of the ten experts: 2,000 in all."""


@pytest.fixture(scope="module")
def student():
    return encoder_of(byte_level(400))


def check_many(student, name: str, seed: int, count: int, longest: int, limit: int) -> None:
    teacher = expert_encoder(name)
    encoder = BlockEncoder(student, teacher, limit, max_teacher_tokens=limit)
    source = Conversations(seed, longest)
    learnt, problems = 0, {}
    for _ in range(count):
        example = source.example()
        encoded = encoder.encode(example)
        assert encoded.blocks or encoded.problem
        check_round_trip(example, encoded, student, teacher)
        for block in encoded.blocks:
            assert max(len(block.student_ids), len(block.teacher_ids)) <= limit
        learnt += bool(encoded.blocks)
        problems[encoded.problem] = problems.get(encoded.problem, 0) + 1
    assert problems.get("it cannot be encoded", 0) == 0, problems
    # Templates refuse a few kinds, and a prompt of 200 kB fits in no block.
    assert learnt > count * 0.6, problems


@pytest.mark.parametrize("name", FAST_EXPERTS)
def test_what_is_scored_is_what_was_written(student, name):
    check_many(student, name, seed=1, count=FAST, longest=2_000, limit=1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_two_thousand_conversations_of_all_lengths(student, name):
    check_many(student, name, seed=2, count=EACH, longest=200_000, limit=2048)


@pytest.mark.parametrize("name", ["qwen3", "inst"])
def test_a_student_with_a_template_of_its_own(name):
    """A user's own tokenizer, with a template that rewrites turns."""
    own = as_student(expert_encoder(name))
    check_many(own, "phi", seed=3, count=FAST, longest=2_000, limit=1024)


_TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


@settings(max_examples=40, deadline=None)
@given(st.lists(_TEXT, min_size=2, max_size=8), st.sampled_from(["phi", "tinyllama", "inst"]))
def test_any_text_is_learnt_or_has_a_reason(student, texts, name):
    teacher = expert_encoder(name)
    roles = ("user", "assistant")
    messages = tuple(Message(roles[n % 2], text) for n, text in enumerate(texts))
    example = Example(messages=messages)
    encoded = BlockEncoder(student, teacher, 256, max_teacher_tokens=256).encode(example)
    assert encoded.blocks or encoded.problem
    assert encoded.problem != "it cannot be encoded", encoded.detail
    check_round_trip(example, encoded, student, teacher)
