"""Which text each expert teaches, what is held out, and its encoding as blocks."""

from __future__ import annotations

import msgspec
import pytest
import torch

from engine.config import DataConfig, OptimizerConfig, RunConfig
from engine.distill.align.blocks import BlockEncoder
from engine.distill.data.corpus import (
    assign_to_experts,
    corpus_digest,
    encode_corpus,
    example_key,
    held_out_keys,
    read_files,
    require_both_parts,
)
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import teacher_encoder
from engine.distill.teacher.teacher import Teacher
from engine.errors import UsageError
from engine.text.examples import Example, encode_example
from tests.support.tiny_expert import SPEC, make_expert
from tests.support.toys import PROSE, chat, document


def expert(name: str, *capabilities: str):
    return msgspec.structs.replace(SPEC, name=name, title=name, capabilities=capabilities)


CODER, MATHS, TALKER = expert("coder", "code"), expert("maths", "math", "code"), expert("talker")
EXPERTS = [CODER, MATHS, TALKER]


@pytest.mark.parametrize(
    ("example", "teachers"),
    [
        (document("x", expert="talker"), ["talker"]),
        (document("x", expert="talker", capability="code"), ["talker"]),
        (document("x", capability="code"), ["coder", "maths"]),
        (document("x", capability="math"), ["maths"]),
        (document("x", capability="safety"), ["coder", "maths", "talker"]),
        (document("x", expert="stranger"), ["coder", "maths", "talker"]),
        (document("x", expert="stranger", capability="math"), ["maths"]),
        (document("x"), ["coder", "maths", "talker"]),
    ],
)
def test_an_example_goes_to_the_expert_it_names_or_those_with_its_capability_or_all(
    example, teachers
):
    shares = assign_to_experts([example], EXPERTS)
    assert sorted(name for name, found in shares.items() if found) == teachers
    assert set(shares) == {"coder", "maths", "talker"}


def texts(start: int, stop: int) -> list[Example]:
    return [chat(f"Question {n}?", f"Answer {n}: {PROSE[n : n + 60]}") for n in range(start, stop)]


def test_held_out_text_is_held_out_of_every_expert():
    shares = {"one": texts(0, 60), "two": texts(30, 100), "three": texts(90, 95)}
    held = held_out_keys(shares, 0.1, 50)
    assert len(held) >= 10
    for part in shares.values():
        kept = [example for example in part if example_key(example) in held]
        assert kept
        assert len(kept) < len(part)
    trained = {
        example_key(e) for part in shares.values() for e in part if example_key(e) not in held
    }
    assert trained.isdisjoint(held)


def test_share_and_maximum_limit_the_held_out_text():
    shares = {"one": texts(0, 100)}
    assert len(held_out_keys(shares, 0.05, 64)) == 5
    assert len(held_out_keys(shares, 0.5, 8)) == 8
    assert len(held_out_keys(shares, 0.001, 8)) == 1


def test_the_held_out_text_does_not_depend_on_order_or_unicode_form():
    shares = {"one": texts(0, 40)}
    held = held_out_keys(shares, 0.1, 64)
    assert held_out_keys({"one": texts(0, 40)[::-1]}, 0.1, 64) == held
    assert example_key(chat("e\u0301", "x")) == example_key(chat("é", "x", expert="one"))
    assert example_key(chat("é", "x")) != example_key(chat("é", "y"))


def test_the_corpus_digest_depends_on_the_texts_and_the_held_out_keys():
    examples = texts(0, 5)
    digest = corpus_digest(examples, frozenset({"a"}))
    assert corpus_digest(texts(0, 5), frozenset({"a"})) == digest
    assert corpus_digest(examples, frozenset({"b"})) != digest
    assert corpus_digest(examples[:4], frozenset({"a"})) != digest


def test_files_are_read_one_after_the_other(tmp_path):
    files = []
    for name, part in (("a", texts(0, 3)), ("b", texts(3, 5))):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"".join(encode_example(e) + b"\n" for e in part))
        files.append(str(path))
    assert read_files(files).examples == texts(0, 5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"), context=512)
    return load_teacher(folder, SPEC, dtype=torch.float32)


CONFIG = RunConfig(optimizer=OptimizerConfig(max_seq_len=256))


def encode(trained, teacher, examples, held=None, spec=SPEC, config=CONFIG):
    held = held_out_keys({"tiny": examples}, 0.1, 64) if held is None else held
    encoder = BlockEncoder(
        student=trained["prepend"],
        teacher=teacher_encoder(teacher),
        max_seq_len=config.optimizer.max_seq_len,
        trust_end=spec.trust_end,
    )
    return encode_corpus(examples, held, encoder, config, lambda doing: None)


def test_text_is_encoded_as_training_and_held_out_blocks(trained, teacher):
    examples = texts(0, 30)
    held = held_out_keys({"tiny": examples}, 0.1, 64)
    text = encode(trained, teacher, examples, held)
    assert len(text.held_out) == len(held) == 3
    assert len(text.train) == 27
    assert not {b.key for b in text.train} & {b.key for b in text.held_out}


def test_duplicates_are_left_out(trained, teacher):
    examples = texts(0, 10)
    held = held_out_keys({"tiny": examples}, 0.1, 64)
    once, twice = (encode(trained, teacher, part, held) for part in (examples, examples * 2))
    assert [b.key for b in twice.train] == [b.key for b in once.train]
    assert twice.stats == once.stats


def test_statistics_count_bytes_tokens_and_positions(trained, teacher):
    unreadable = [chat(f"Hi {n}.", f"▁ {n}") for n in range(3)]
    examples = [*texts(0, 12), *unreadable, chat("Say nothing.", "", complete=False)]
    text = encode(trained, teacher, examples, held_out_keys({"tiny": texts(0, 12)}, 0.1, 64))
    blocks = text.train + text.held_out
    stats = text.stats
    assert stats.skipped == 4
    assert stats.text_bytes == sum(len(e.messages[1].content) for e in texts(0, 12))
    assert stats.teacher_tokens == sum(len(b.teacher_ids) for b in blocks)
    assert stats.student_tokens == sum(len(b.student_ids) for b in blocks)
    assert stats.positions == sum(len(b.student_scored) for b in blocks)
    assert stats.aligned + stats.inside == stats.positions
    assert stats.inside > 0
    assert stats.crossing == sum(int((b.alignment.inside_stop >= 0).sum()) for b in blocks) > 0


def test_teacher_tokens_are_limited(trained, teacher):
    examples = texts(0, 60)
    whole = encode(trained, teacher, examples)
    most = whole.stats.teacher_tokens // 3
    config = msgspec.structs.replace(CONFIG, data=DataConfig(max_teacher_tokens=most))
    part = encode(trained, teacher, examples, config=config)
    longest = max(len(b.teacher_ids) for b in whole.train)
    held = sum(len(b.teacher_ids) for b in part.held_out)
    # The last text may exceed the limit, and all held-out text is encoded.
    assert most - longest <= part.stats.teacher_tokens <= most + longest + held
    assert [b.key for b in part.held_out] == [b.key for b in whole.held_out]
    assert len(part.train) < len(whole.train)


@pytest.mark.parametrize("examples", [[], texts(0, 1), [chat("Hi.", "▁"), chat("Ho.", "▁▁")]])
def test_too_little_text_is_a_usage_error_with_a_remedy(trained, teacher, examples):
    with pytest.raises(UsageError, match=r"expert tiny.*--data") as caught:
        encoded = encode(trained, teacher, examples, held_out_keys({"tiny": examples}, 0.05, 64))
        require_both_parts(encoded, SPEC, len(examples))
    assert "\n" not in str(caught.value)


def test_untrusted_ends_of_turn_have_no_soft_target(trained, teacher):
    spec = msgspec.structs.replace(SPEC, trust_end=False)
    text = encode(trained, teacher, texts(0, 10), spec=spec)
    for block in text.train:
        assert not block.alignment.soft[block.is_end].any()
