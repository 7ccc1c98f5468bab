"""What is learnt of conversations that are not a plain exchange of two speakers."""

from __future__ import annotations

import time

import numpy as np
import pytest

from engine.chat import ChatRenderer
from engine.chat_tools import answer_text
from engine.distill.align.blocks import BlockEncoder, ChatEncoder
from engine.text.examples import Example, Message, ToolCall
from tests.support.conversations import TOOLS, check_round_trip, runs_of
from tests.support.real_experts import TEMPLATES
from tests.support.toys import (
    PROSE,
    byte_level,
    chat,
    document,
    encode,
    encoder_of,
    project_all,
    projector_of,
    random_logits,
    sentencepiece,
)

CALL = ToolCall("get_weather", {"city": "Oslo"}, "call00001")
CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
WITH_TOOLS = Example(
    messages=(
        Message("user", "Weather in Oslo?"),
        Message("assistant", "", tool_calls=(CALL,)),
        Message("tool", '{"t": 3}', tool_call_id="call00001"),
        Message("assistant", "It is 3 degrees."),
    ),
    tools=TOOLS,
)


def expert(template: str, kind: str = "byte_level") -> ChatEncoder:
    """An expert with a public model's template and a small tokenizer; "" is phi's format."""
    tokenizer = byte_level(300) if kind == "byte_level" else sentencepiece(kind)
    tokenizer.chat_template = template and (TEMPLATES / f"{template}.jinja").read_text()
    end = tokenizer.eos_token_id
    return ChatEncoder(tokenizer, ChatRenderer(tokenizer, "template" if template else "phi"), [end])


@pytest.fixture(scope="module")
def student() -> ChatEncoder:
    return encoder_of(byte_level())


def learnt(example: Example, student: ChatEncoder, teacher: ChatEncoder, **more) -> list[bytes]:
    """The scored runs of the student, after the round trip was checked for both."""
    encoded = encode(example, student, teacher, **more)
    check_round_trip(example, encoded, student, teacher)
    return [run for block in encoded.blocks for run in runs_of(block, student, teacher)[0]]


EXPERTS = ("qwen2.5", "llama3.2", "tinyllama", "strict", "mistral", "")


# Roles (cases 01 and 02)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_assistant_who_opens_is_context_and_the_rest_is_learnt(student, name):
    turns = ("assistant", "user", "assistant")
    messages = tuple(Message(r, t) for r, t in zip(turns, ("Hello!", "Hi.", "How?"), strict=True))
    encoded = encode(Example(messages=messages), student, expert(name))
    (block,) = encoded.blocks
    assert runs_of(block, student, student)[0] == [b"How?"]
    assert encoded.problem == "the assistant opens the conversation"
    assert "Hello!" in student.tokenizer.decode(block.student_ids)


def test_an_answer_to_nobody_is_left_out(student):
    alone = Example(messages=(Message("system", "Be brief."), Message("assistant", "Hello!")))
    encoded = encode(alone, student, expert("qwen2.5"))
    assert not encoded.blocks and encoded.problem == "the assistant opens the conversation"


def test_what_a_template_refuses_is_left_out_with_its_words(student):
    messages = (*chat("One?", "Two.").messages, Message("assistant", "Three."))
    encoded = encode(Example(messages=messages), student, expert("strict"))
    assert not encoded.blocks
    assert encoded.problem == "the expert's chat template refuses it"
    assert "Conversation roles must alternate" in encoded.detail
    own = encoder_of(expert("strict").tokenizer)
    encoded = encode(Example(messages=messages), own, expert("qwen2.5"))
    assert encoded.problem == "the student's chat template refuses it"


def test_a_system_turn_folds_for_the_student_as_for_an_expert(student):
    example = Example(messages=(Message("system", "Be brief."), *chat("One?", "Two.").messages))
    own = encoder_of(expert("strict").tokenizer)
    for s, t in ((student, expert("strict")), (own, expert("qwen2.5")), (own, expert("strict"))):
        assert learnt(example, s, t) == [b"Two."]
    block = encode(example, own, expert("strict")).blocks[0]
    for ids in (block.student_ids, block.teacher_ids):
        assert "user\nBe brief.\n\nOne?" in own.tokenizer.decode(ids)


def test_users_in_a_row_and_tools_are_put_in_a_form_that_a_template_takes(student):
    two = Example(messages=(Message("user", "One."), *chat("Two?", "Three.").messages))
    result = Message("tool", "42")
    tool = Example(messages=(Message("user", "One?"), result, Message("assistant", "It is 42.")))
    for name in EXPERTS:
        assert learnt(two, student, expert(name)) == [b"Three."]
        assert learnt(tool, student, expert(name)) == [b"It is 42."]
        (block,) = encode(tool, student, expert(name)).blocks
        assert "42\n</tool_response>" in student.tokenizer.decode(block.student_ids)


# Tools, reasoning and weights (case 04)


@pytest.mark.parametrize("name", [*EXPERTS, "gemma2", "llama2"])
def test_a_call_is_learnt_as_its_json_and_never_as_an_empty_answer(student, name):
    teacher = expert(name)
    assert learnt(WITH_TOOLS, student, teacher) == [CALL_TEXT.encode(), b"It is 3 degrees."]
    for block in encode(WITH_TOOLS, student, teacher).blocks:
        for ids, encoder in ((block.student_ids, student), (block.teacher_ids, teacher)):
            context = encoder.tokenizer.decode(ids)
            assert "get_weather" in context and "The weather in a place." in context


def test_the_marks_of_a_call_have_a_soft_target_only_where_the_expert_writes_them(student):
    def soft_text(name: str) -> bytes:
        block = encode(WITH_TOOLS, student, expert(name)).blocks[0]
        scored = block.student_ids[block.student_scored]
        tokens = [student.vocabulary.token_bytes[i] or b"" for i in scored]
        size = len(runs_of(block, student, student)[0][0])
        stop = int(np.searchsorted(np.cumsum([len(t) for t in tokens]), size)) + 1
        soft = block.alignment.soft
        return b"".join(t for t, s in zip(tokens[:stop], soft[:stop], strict=True) if s)

    assert soft_text("qwen2.5") == CALL_TEXT.encode()
    for name in ("llama3.2", "tinyllama", ""):
        soft = soft_text(name)
        assert b"tool_call" not in soft and b"arguments" not in soft
        assert b"weather" in soft and b"Oslo" in soft


@pytest.mark.parametrize("name", EXPERTS)
def test_a_turn_without_weight_has_no_loss(student, name):
    bad = Message("assistant", "BAD ANSWER", weight=0)
    messages = (Message("user", "Hi"), bad, Message("user", "Again"), Message("assistant", "Good"))
    assert learnt(Example(messages=messages), student, expert(name)) == [b"Good"]
    (block,) = encode(Example(messages=messages), student, expert(name)).blocks
    assert "BAD ANSWER" in student.tokenizer.decode(block.student_ids)
    none = encode(Example(messages=messages[:2]), student, expert(name))
    assert not none.blocks and none.problem == "no answer has a weight"


@pytest.mark.parametrize("name", EXPERTS)
def test_reasoning_is_learnt_before_the_answer(student, name):
    messages = (Message("user", "Sum 0+1"), Message("assistant", "1", "0 plus one"))
    text = b"<think>\n0 plus one\n</think>\n\n1"
    assert learnt(Example(messages=messages), student, expert(name)) == [text]


# Long conversations and texts (cases 05 and 18)


def test_long_answers_and_second_turns_do_not_vanish(student):
    teacher = expert("qwen2.5")
    examples = [
        chat("Long answer", PROSE * 4 + " THE-END"),
        chat("Two turns", "First answer.", "Go on. " + PROSE[:60], "SECOND ANSWER"),
        chat("Short", "Fine."),
    ]
    for example in examples:
        encoded = encode(example, student, teacher, limit=192)
        assert not encoded.problem
        check_round_trip(example, encoded, student, teacher)


def test_a_prompt_that_does_not_fit_is_reported_with_its_tokens(student):
    example = chat("Fine?", "Fine.", PROSE * 3, "SHORT ANSWER", "And?", "Fine again.")
    encoded = encode(example, student, expert("qwen2.5"), limit=192)
    assert encoded.problem == "the prompt is longer than the context"
    assert "1 of 3 answers not learnt; turn 4" in encoded.detail and "at most 192" in encoded.detail
    check_round_trip(example, encoded, student, expert("qwen2.5"))
    runs = [r for b in encoded.blocks for r in runs_of(b, student, student)[0]]
    assert runs == [b"Fine.", b"Fine again."]


def seconds(example: Example, encoder: BlockEncoder) -> float:
    began = time.process_time()
    encoded = encoder.encode(example)
    assert encoded.blocks and not encoded.problem
    return time.process_time() - began


def test_the_time_grows_with_the_text_and_not_with_its_square(student):
    encoder = BlockEncoder(student, expert("qwen2.5"), 256, max_teacher_tokens=256)
    words = (PROSE * 40)[: 1 << 12]

    def longer(times: int) -> list[Example]:
        turns = [text for n in range(40 * times) for text in (f"{n}? {PROSE[:90]}", f"{n}.")]
        return [document(words * times), chat("Go.", words * times), chat(*turns)]

    for short, long in zip(longer(1), longer(4), strict=True):
        seconds(short, encoder)
        assert seconds(long, encoder) < 4 * 2.5 * seconds(short, encoder) + 0.2


# Templates that rewrite turns (case 07)


def test_thoughts_that_a_template_drops_later_are_learnt_in_blocks_of_their_own(student):
    teacher = expert("qwen2.5")
    teacher.tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    answers = [f"<think>\nstep {n}\n</think>\n\nAnswer {n}." for n in range(3)]
    example = chat("One?", answers[0], "Two?", answers[1], "Three?", answers[2])
    assert learnt(example, student, teacher) == [answer.encode() for answer in answers]
    blocks = encode(example, student, teacher).blocks
    assert len(blocks) == 3
    last = teacher.tokenizer.decode(blocks[2].teacher_ids)
    assert "step 0" not in last and "Answer 0" in last and "step 2" in last


@pytest.mark.parametrize("name", ["inst", "llama2", "gemma2", "mistral", "llama3.2"])
@pytest.mark.parametrize("kind", ["byte_level", "prepend", "metaspace"])
def test_several_turns_are_learnt_in_one_block_where_a_template_trims_or_prepends(name, kind):
    student = encoder_of(byte_level())
    teacher = expert(name, kind)
    example = chat("One?", "Answer one.", "Two?", " two \n", "Three?", "three")
    encoded = encode(example, student, teacher)
    check_round_trip(example, encoded, student, teacher)
    assert len(encoded.blocks) == 1
    # each answer ends with one end token, and the template's own is not doubled
    end = teacher.end_ids[0]
    own = "llama3.2" in name or "gemma" in name  # they end turns with a token that is not here
    assert own or (encoded.blocks[0].teacher_ids == end).sum() == 3


# The first token of an answer (case 08)


@pytest.mark.parametrize("name", ["", "inst"])
@pytest.mark.parametrize("kind", ["byte_level", "prepend"])
def test_the_space_before_an_answer_belongs_to_its_first_word(student, name, kind):
    teacher = expert(name, kind)
    example = chat("Where?", "the river")
    (block,) = encode(example, student, teacher).blocks
    first = teacher.vocabulary.token_bytes[block.teacher_ids[block.teacher_scored[0]]]
    assert first is not None and first.startswith(b" t") and b" the".startswith(first)
    before = teacher.vocabulary.token_bytes[block.teacher_ids[block.teacher_scored[0] - 1]]
    assert before is not None and not before.endswith(b" ")
    # rule 2: the expert's tokens that begin with the space, without it
    logits = random_logits(teacher.vocabulary.size, len(block.alignment.teacher_ids), seed=3)
    spaced = [b is not None and b.startswith(b" ") for b in teacher.vocabulary.token_bytes]
    logits[np.array(spaced)] += 6  # less than min_mass of it would be no target
    q = project_all(projector_of(teacher, student), logits, block)
    p = logits[:, 0].softmax(0)
    expected = np.zeros(student.vocabulary.size)
    for token, spelling in enumerate(teacher.vocabulary.token_bytes):
        if spelling is not None and spelling.startswith(b" ") and len(spelling) > 1:
            (target,) = student.vocabulary.first_tokens([spelling[1:]])
            expected[target] += float(p[token])
    mass = expected.sum()
    np.testing.assert_allclose(q.q[:, 0].numpy(), expected / mass, rtol=1e-4, atol=1e-6)
    assert float(q.mass[0]) == pytest.approx(mass, rel=1e-4)


def test_two_models_that_both_write_the_space_agree_token_by_token():
    both = expert("inst", "prepend")
    own = encoder_of(both.tokenizer)
    (block,) = encode(chat("Where?", "the river"), own, both).blocks
    assert (block.alignment.offset == 0).all() and block.alignment.soft.all()
    assert block.text_bytes == len("the river")


# Nothing is raised


@pytest.mark.parametrize(
    ("example", "problem"),
    [
        (chat("Hi", "half \ud800"), "it is not valid Unicode"),
        (chat("half \udfff", "x"), "it is not valid Unicode"),
        (document("half \ud800"), "it is not valid Unicode"),
        (chat("Hi", "", complete=False), "the answer is empty"),
    ],
)
def test_an_odd_text_is_a_row_of_the_table(student, example, problem):
    encoded = encode(example, student, expert("qwen2.5"))
    assert not encoded.blocks and encoded.problem == problem


def test_a_template_that_fails_is_reported_and_nothing_is_raised(student):
    teacher = expert("qwen2.5")
    teacher.tokenizer.chat_template = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"
    encoded = encode(chat("Hi", "Ho"), student, teacher)
    assert encoded.problem == "the expert's chat template refuses it"
    assert "TypeError" in encoded.detail
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    call = ToolCall("f", deep)
    nested = Example(messages=(Message("user", "Hi"), Message("assistant", "", tool_calls=(call,))))
    assert encode(nested, student, expert("qwen2.5")).problem


def test_an_answers_text_is_the_students_template(student):
    """What is scored is what the student's own template writes for the turn."""
    text = student.tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": "So.",
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {"type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
                ],
            },
        ],
        tokenize=False,
    )
    message = Message("assistant", "So.", "Hm.", (ToolCall("f", {"é": 1}),))
    assert f"assistant\n{answer_text(message)}<|im_end|>" in str(text)
