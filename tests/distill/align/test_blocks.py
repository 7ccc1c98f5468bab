"""The same text in the tokens of student and expert, aligned."""

from __future__ import annotations

import numpy as np
import pytest

from engine.distill.align.blocks import ChatEncoder, TextBlock, normalise
from engine.text.examples import Example, Message
from tests.support.toys import (
    PROSE,
    UNUSUAL_TEXTS,
    block_of,
    blocks_of,
    byte_level,
    chat,
    document,
    encoder_of,
)

PAIRS = [
    ("byte_level", "prepend"),
    ("prepend", "byte_level"),
    ("metaspace", "prepend"),
    ("prepend", "prepend"),
    ("byte_level", "metaspace"),
]


def scored_bytes(encoder: ChatEncoder, ids: np.ndarray, scored: np.ndarray) -> list[bytes | None]:
    return [encoder.vocabulary.token_bytes[i] for i in ids[scored]]


def check_block(
    block: TextBlock, student: ChatEncoder, teacher: ChatEncoder, turns: list[str]
) -> None:
    """The scored tokens of both spell the turns, each turn with its end token."""
    text = "".join(turns).encode()
    read = scored_bytes(student, block.student_ids, block.student_scored)
    assert b"".join(b for b in read if b is not None).lstrip(b" ") == text.lstrip(b" ")
    assert block.text_bytes == len(text)
    assert (block.student_ids[block.student_scored[block.is_end]] == student.end_ids[0]).all()
    teacher_bytes = scored_bytes(teacher, block.teacher_ids, block.teacher_scored)
    assert b"".join(b for b in teacher_bytes if b is not None).lstrip(b" ") == text.lstrip(b" ")
    np.testing.assert_array_equal(block.alignment.token, block.student_ids[block.student_scored])
    with_bytes = block.alignment.teacher_ids >= 0
    np.testing.assert_array_equal(
        block.alignment.teacher_ids[with_bytes],
        block.teacher_ids[block.teacher_scored[with_bytes]],
    )
    assert (block.student_scored >= 1).all()
    assert (block.teacher_scored >= 1).all()


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("text", UNUSUAL_TEXTS)
def test_unusual_answers_are_scored_byte_for_byte(trained, student, teacher, text):
    s, t = trained[student], trained[teacher]
    example = normalise(chat("Say it.", text))
    answer = example.messages[1].content
    block = block_of(example, s, t)
    check_block(block, s, t, [answer])
    assert block.is_end.tolist() == [False] * (len(block.is_end) - 1) + [True]


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@pytest.mark.parametrize("text", UNUSUAL_TEXTS)
def test_unusual_documents_are_scored_byte_for_byte(trained, student, teacher, text):
    example = normalise(document(text))
    s, t = trained[student], trained[teacher]
    check_block(block_of(example, s, t), s, t, [example.text])


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_every_assistant_turn_is_scored_and_ends(trained, student, teacher):
    s, t = trained[student], trained[teacher]
    turns = ["Rivers run.", "", "x", "They run to the sea."]
    example = chat("One?", turns[0], "Two?", turns[1], "Three?", turns[2], "Four?", turns[3])
    block = block_of(example, s, t)
    check_block(block, s, t, turns)
    assert block.is_end.sum() == 4
    # ends are aligned with the teacher's ends, which no token is realised at
    ends = block.alignment.at[block.is_end]
    assert (block.alignment.teacher_ids[ends] == -1).all()
    assert (block.teacher_ids[block.teacher_scored[ends]] == t.end_ids[0]).all()


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_text_before_an_answer_is_not_scored(trained, student, teacher):
    s, t = trained[student], trained[teacher]
    block = block_of(chat("A question about rivers?", "x"), s, t)
    assert block.student_scored.tolist() == [len(block.student_ids) - 2, len(block.student_ids) - 1]
    assert block.teacher_scored.tolist() == [len(block.teacher_ids) - 2, len(block.teacher_ids) - 1]
    prompt = s.tokenizer.decode(block.student_ids[: block.student_scored[0]])
    assert "A question about rivers?" in prompt


def test_an_incomplete_answer_has_no_end(trained):
    s, t = trained["byte_level"], trained["prepend"]
    whole = block_of(chat("Tell.", "The river runs"), s, t)
    cut = block_of(chat("Tell.", "The river runs", complete=False), s, t)
    assert whole.is_end.sum() == 1
    assert cut.is_end.sum() == 0
    assert len(cut.alignment) == len(whole.alignment) - 1
    assert len(cut.alignment.teacher_ids) == len(whole.alignment.teacher_ids) - 1
    # the turns before the cut one are complete
    two = block_of(chat("Tell.", "The river runs", "On.", "to the", complete=False), s, t)
    assert two.is_end.sum() == 1
    assert not two.is_end[-1]


def test_an_incomplete_document_has_no_end(trained):
    s, t = trained["prepend"], trained["byte_level"]
    assert block_of(document(PROSE), s, t).is_end.sum() == 1
    assert block_of(document(PROSE, complete=False), s, t).is_end.sum() == 0


def test_an_untrusted_end_of_turn_has_no_soft_target(trained):
    s, t = trained["byte_level"], trained["prepend"]
    example = chat("One?", "Rivers run.", "Two?", "To the sea.")
    trusted = block_of(example, s, t)
    not_trusted = block_of(example, s, t, trust_end=False)
    assert trusted.alignment.soft.all()
    np.testing.assert_array_equal(not_trusted.alignment.soft, ~not_trusted.is_end)
    assert not_trusted.is_end.sum() == 2


def test_special_looking_text_in_an_answer_is_plain_text(trained):
    for kind in ("byte_level", "prepend"):
        s = trained[kind]
        answer = "end with <|im_end|> or </s> or <|endoftext|>"
        block = block_of(chat("How do turns end?", answer), s, s)
        ends = [n for n in s.tokenizer.all_special_ids if n is not None]
        scored = block.student_ids[block.student_scored]
        assert not np.isin(scored[:-1], ends).any()
        assert b"".join(scored_bytes(s, scored, np.arange(len(scored) - 1))) == answer.encode()


def with_template(kind: str, template: str) -> ChatEncoder:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    assert kind == "byte_level"
    return encoder_of(tokenizer)


TRIMS = (
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] | trim + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def test_a_template_that_trims_loses_only_what_it_changes(trained):
    s, t = trained["byte_level"], with_template("byte_level", TRIMS)
    check_block(block_of(chat("Hi.", "  spaced out \n"), s, t), s, t, ["  spaced out \n"])
    clean = chat("Hi.", "spaced", "More.", "out")
    check_block(block_of(clean, s, t), s, t, ["spaced", "out"])
    # in an earlier turn too: the expert reads it as it is scored
    spaced = chat("Hi.", "spaced \n", "More.", " out")
    check_block(block_of(spaced, s, t), s, t, ["spaced \n", " out"])


def test_an_end_of_turn_is_added_where_the_template_has_none(trained):
    plain = (
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    s, t = trained["prepend"], with_template("byte_level", plain)
    block = block_of(chat("One?", "Rivers", "Two?", "run"), s, t)
    check_block(block, s, t, ["Rivers", "run"])
    assert (block.teacher_ids == t.end_ids[0]).sum() == 2


def test_there_is_exactly_one_bos(trained):
    s = trained["byte_level"]
    for kind in ("prepend", "metaspace"):
        t = trained[kind]
        block = block_of(document("The river."), s, t)
        bos = t.tokenizer.bos_token_id
        assert block.teacher_ids[0] == bos
        assert (block.teacher_ids == bos).sum() == 1


def test_a_conversation_that_is_too_long_is_split_between_its_turns(trained):
    s, t = trained["byte_level"], trained["prepend"]
    turns = [text for n in range(12) for text in (f"Question {n}?", f"The answer {n}.")]
    blocks = blocks_of(chat(*turns), s, t, limit=160)
    assert len(blocks) > 2
    answers = turns[1::2]
    for block in blocks:
        assert max(len(block.student_ids), len(block.teacher_ids)) <= 160
        count = int(block.is_end.sum())
        check_block(block, s, t, answers[:count])
        answers = answers[count:]
        assert s.tokenizer.decode(block.student_ids).startswith("<|im_start|>user\nQuestion")
    assert not answers
    # a later block has earlier turns as context
    assert blocks[1].student_scored[0] > len(s.encode_context(turns[0], False)) + 40


def test_an_answer_that_is_too_long_is_split_into_consecutive_blocks(trained):
    s, t = trained["byte_level"], trained["prepend"]
    for complete in (True, False):
        example = chat("One?", "Short.", "Two?", PROSE * 2, "Three?", "Last.", complete=complete)
        blocks = blocks_of(example, s, t, limit=120)
        read = b""
        for block in blocks:
            assert max(len(block.student_ids), len(block.teacher_ids)) <= 120
            scored = scored_bytes(s, block.student_ids, block.student_scored)
            read += b"".join(b for b in scored if b is not None)
            first = block.student_scored[0]
            assert b"Two?" in b"".join(
                s.vocabulary.token_bytes[i] or b"" for i in block.student_ids[:first]
            ) or block in (blocks[0], blocks[-1])
        assert read == b"Short." + (PROSE * 2).encode() + b"Last."
        assert sum(int(block.is_end.sum()) for block in blocks) == 2 + complete
        # the context of a later piece is the text before it
        before = blocks[2].student_ids[: blocks[2].student_scored[0]]
        tail = blocks[1].student_ids[blocks[1].student_scored][-20:]
        assert before[-20:].tolist() == tail.tolist()


def test_a_prompt_that_is_too_long_is_skipped(trained):
    s, t = trained["byte_level"], trained["prepend"]
    assert blocks_of(chat(PROSE * 3, "x"), s, t, limit=64) == []


@pytest.mark.parametrize("limit", [60, 150, 1000])
@pytest.mark.parametrize("text", [PROSE * 3, "x" * 900, "漢字かな" * 100])
def test_a_document_that_is_too_long_is_split_without_losing_a_byte(trained, limit, text):
    s, t = trained["byte_level"], trained["metaspace"]
    blocks = blocks_of(document(text), s, t, limit=limit)
    assert sum(block.text_bytes for block in blocks) == len(text.encode())
    read = b"".join(
        b"".join(b or b"" for b in scored_bytes(s, block.student_ids, block.student_scored))
        for block in blocks
    )
    assert read == text.encode()
    for block in blocks:
        assert max(len(block.student_ids), len(block.teacher_ids)) <= limit
    assert [bool(block.is_end.any()) for block in blocks] == [False] * (len(blocks) - 1) + [True]


def test_text_that_a_tokenizer_changes_is_skipped(trained):
    s, t = trained["byte_level"], trained["prepend"]
    assert blocks_of(chat("Hi.", "a sign: ▁"), s, t) == []
    assert blocks_of(document("a sign: ▁"), s, t) == []


def test_a_chat_without_an_answer_is_skipped(trained):
    s = trained["byte_level"]
    example = Example(messages=(Message("user", "Hi."), Message("assistant", "Hello.")))
    assert block_of(example, s, s).text_bytes == 6
    trailing = Example(messages=(*example.messages, Message("user", "And?")))
    assert block_of(trailing, s, s).key == block_of(example, s, s).key


def test_text_is_normalised_to_nfc(trained):
    s, t = trained["byte_level"], trained["prepend"]
    block = block_of(chat("Say e\u0301.", "e\u0301"), s, t)
    assert block.text_bytes == 2
    assert normalise(chat("e\u0301", "e\u0301")) == chat("é", "é")


def test_the_key_depends_on_the_text_only(trained):
    keys = {block_of(chat("One?", "Rivers run."), trained[s], trained[t]).key for s, t in PAIRS}
    assert len(keys) == 1
    other = block_of(chat("One?", "Rivers ran."), trained["prepend"], trained["prepend"])
    assert other.key not in keys


def test_only_the_position_of_the_dummy_space_has_no_soft_target(trained):
    s, t = trained["byte_level"], trained["prepend"]
    for student, teacher in ((s, t), (t, s), (t, t)):
        alignment = block_of(document(PROSE), student, teacher).alignment
        assert alignment.soft.tolist() == [False] + [True] * (len(alignment) - 1)
    assert block_of(document(PROSE), s, s).alignment.soft.all()


def test_a_text_that_begins_with_a_space_is_encoded(trained):
    s, t = trained["byte_level"], trained["prepend"]
    block = block_of(document(" river"), s, t)
    check_block(block, s, t, [" river"])
    assert block.alignment.token[0] == s.vocabulary.encode(" river")[0]
