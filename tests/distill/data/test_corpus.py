"""Which text each expert teaches, what is held out, and its preparation into shards."""

from __future__ import annotations

import msgspec
import pytest
import torch

from engine.config import DataConfig, OptimizerConfig, RunConfig, TargetsConfig
from engine.distill.align.projection import Projector
from engine.distill.data.corpus import (
    Tally,
    assign,
    corpus_digest,
    example_key,
    held_out_keys,
    read_files,
    read_text,
    score_into,
)
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import teacher_encoder
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.teacher.teacher import Teacher
from engine.errors import UsageError
from engine.text.examples import Example, encode_example
from tests.support.tiny_expert import SPEC, make_expert
from tests.support.toys import PROSE, chat, document, projector_of


def expert(name: str, *capabilities: str):
    return msgspec.structs.replace(SPEC, name=name, title=name, capabilities=capabilities)


CODER, MATHS, TALKER = expert("coder", "code"), expert("maths", "math", "code"), expert("talker")
EXPERTS = [CODER, MATHS, TALKER]


@pytest.mark.parametrize(
    ("example", "takers"),
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
def test_an_example_goes_to_whom_it_names_or_suits_or_to_all(example, takers):
    shares = assign([example], EXPERTS)
    assert sorted(name for name, found in shares.items() if found) == takers
    assert set(shares) == {"coder", "maths", "talker"}


def texts(start: int, stop: int) -> list[Example]:
    return [chat(f"Question {n}?", f"Answer {n}: {PROSE[n : n + 60]}") for n in range(start, stop)]


def test_held_out_text_is_never_trained_on_whoever_teaches_it():
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


def test_the_share_and_the_most_bound_what_is_held_out():
    shares = {"one": texts(0, 100)}
    assert len(held_out_keys(shares, 0.05, 64)) == 5
    assert len(held_out_keys(shares, 0.5, 8)) == 8
    assert len(held_out_keys(shares, 0.001, 8)) == 1


def test_what_is_held_out_does_not_depend_on_order_or_form():
    shares = {"one": texts(0, 40)}
    held = held_out_keys(shares, 0.1, 64)
    assert held_out_keys({"one": texts(0, 40)[::-1]}, 0.1, 64) == held
    assert example_key(chat("e\u0301", "x")) == example_key(chat("é", "x", expert="one"))
    assert example_key(chat("é", "x")) != example_key(chat("é", "y"))


def test_the_corpus_digest_tells_texts_and_what_is_held_out_apart():
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
    assert read_files(files) == texts(0, 5)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"), context=512)
    return load_teacher(folder, SPEC, dtype=torch.float32)


@pytest.fixture(scope="module")
def projector(trained, teacher) -> Projector:
    return projector_of(teacher_encoder(teacher), trained["prepend"])


CONFIG = RunConfig(
    optimizer=OptimizerConfig(max_seq_len=256),
    targets=TargetsConfig(top_k=8, draws=4, draw_epochs=2),
)


def read(trained, teacher, examples, held=None, spec=SPEC, config=CONFIG):
    held = held_out_keys({"tiny": examples}, 0.1, 64) if held is None else held
    return read_text(
        examples,
        held,
        trained["prepend"],
        teacher_encoder(teacher),
        spec,
        config,
        lambda doing: None,
    )


def test_text_is_read_into_training_and_held_out_blocks(trained, teacher):
    examples = texts(0, 30)
    held = held_out_keys({"tiny": examples}, 0.1, 64)
    text = read(trained, teacher, examples, held)
    assert len(text.held_out) == len(held) == 3
    assert len(text.train) == 27
    assert not {b.key for b in text.train} & {b.key for b in text.held_out}


def test_the_same_text_is_read_once(trained, teacher):
    examples = texts(0, 10)
    held = held_out_keys({"tiny": examples}, 0.1, 64)
    once, twice = (read(trained, teacher, part, held) for part in (examples, examples * 2))
    assert [b.key for b in twice.train] == [b.key for b in once.train]
    assert twice.tally == once.tally


def test_counts_come_out_right(trained, teacher):
    unreadable = [chat(f"Hi {n}.", f"▁ {n}") for n in range(3)]
    examples = [*texts(0, 12), *unreadable, chat("Say nothing.", "", complete=False)]
    text = read(trained, teacher, examples, held_out_keys({"tiny": texts(0, 12)}, 0.1, 64))
    blocks = text.train + text.held_out
    tally = text.tally
    assert tally.skipped == 4
    assert tally.text_bytes == sum(len(e.messages[1].content) for e in texts(0, 12))
    assert tally.teacher_tokens == sum(len(b.teacher_ids) for b in blocks)
    assert tally.student_tokens == sum(len(b.student_ids) for b in blocks)
    assert tally.positions == sum(len(b.student_scored) for b in blocks)
    assert tally.aligned + tally.inside == tally.positions
    assert tally.inside > 0
    assert tally.crossing == sum(int((b.alignment.inside_stop >= 0).sum()) for b in blocks) > 0


def test_no_more_teacher_tokens_are_read_than_asked_for(trained, teacher):
    examples = texts(0, 60)
    whole = read(trained, teacher, examples)
    most = whole.tally.teacher_tokens // 3
    config = msgspec.structs.replace(CONFIG, data=DataConfig(max_teacher_tokens=most))
    part = read(trained, teacher, examples, config=config)
    longest = max(len(b.teacher_ids) for b in whole.train)
    held = sum(len(b.teacher_ids) for b in part.held_out)
    # the last text may go over the bound, and all that is held out is read
    assert most - longest <= part.tally.teacher_tokens <= most + longest + held
    assert [b.key for b in part.held_out] == [b.key for b in whole.held_out]
    assert len(part.train) < len(whole.train)


@pytest.mark.parametrize("examples", [[], texts(0, 1), [chat("Hi.", "▁"), chat("Ho.", "▁▁")]])
def test_too_little_text_is_a_usage_error_with_a_remedy(trained, teacher, examples):
    with pytest.raises(UsageError, match=r"expert tiny.*--data") as caught:
        read(trained, teacher, examples, held_out_keys({"tiny": examples}, 0.05, 64))
    assert "\n" not in str(caught.value)


def test_ends_that_are_not_trusted_have_no_soft_target(trained, teacher):
    spec = msgspec.structs.replace(SPEC, trust_end=False)
    text = read(trained, teacher, texts(0, 10), spec=spec)
    for block in text.train:
        assert not block.alignment.soft[block.is_end].any()


# --- Scoring into shards ---------------------------------------------------

KEY = ShardKey(
    corpus="",
    expert="tiny",
    expert_digest="",
    teacher_tokenizer="",
    student_tokenizer="",
    temperature=2.0,
    top_k=8,
    draws=4,
    epochs=2,
    min_mass=0.05,
    seed=0,
    precision="float32",
)


class JobStopped(Exception):
    pass


@pytest.fixture
def score(trained, teacher, projector, monkeypatch):
    """Scores 40 texts into a store, in shards of about 300 positions; may stop after so many."""
    monkeypatch.setattr("engine.distill.data.corpus.SHARD_POSITIONS", 300)
    text = read(trained, teacher, texts(0, 40))

    def run(store: TargetStore, stop_at: int | None = None, config: RunConfig = CONFIG):
        told: list[tuple[int, int]] = []

        def report(blocks: int, tokens: int) -> None:
            told.append((blocks, tokens))
            if stop_at is not None and blocks >= stop_at:
                raise JobStopped

        size = trained["prepend"].vocabulary.size
        score_into(store, text.train, teacher, projector, config, size, text.tally, report)
        return text, told

    return run


def test_scoring_reports_its_way_to_the_end(score, tmp_path):
    store = TargetStore(tmp_path, KEY)
    text, told = score(store)
    assert told == sorted(told)
    assert told[-1] == (len(text.train), sum(len(b.teacher_ids) for b in text.train))
    assert len(store) == len(text.train)
    assert len(store.shards) > 2
    assert store.complete
    assert Tally(**store.meta) == text.tally


@pytest.mark.parametrize("stop_at", [1, 9, 20, 36])
def test_an_interrupted_scoring_goes_on_and_gives_the_same_shards(score, tmp_path, stop_at):
    score(TargetStore(tmp_path / "whole", KEY))
    with pytest.raises(JobStopped):
        score(TargetStore(tmp_path / "cut", KEY), stop_at)
    resumed = TargetStore(tmp_path / "cut", KEY)
    there = resumed.open()
    assert not resumed.complete
    _, told = score(resumed)
    assert min(blocks for blocks, _ in told) >= sum(s.blocks for s in resumed.shards[:there])
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1]


def test_the_seed_decides_the_draws_and_nothing_else(score, tmp_path):
    stores = [TargetStore(tmp_path / str(seed), KEY) for seed in (0, 1)]
    for seed, store in enumerate(stores):
        score(store, config=msgspec.structs.replace(CONFIG, seed=seed))
    one, two = (store.targets(range(len(store)), 0) for store in stores)
    assert torch.equal(one.ids[:, :8], two.ids[:, :8])
    assert torch.equal(one.mass, two.mass)
    assert not torch.equal(one.ids[:, 8:], two.ids[:, 8:])


def test_what_is_scored_is_not_scored_again(score, tmp_path, monkeypatch):
    score(TargetStore(tmp_path, KEY))
    monkeypatch.setattr("engine.distill.data.corpus.score_blocks", None)
    store = TargetStore(tmp_path, KEY)
    assert store.open() > 2
    score(store)
    assert store.complete


def test_the_event_tells_how_well_the_expert_is_heard(score, tmp_path):
    store = TargetStore(tmp_path, KEY)
    text, _ = score(store)
    event = text.tally.scored([store]).event("tiny", len(text.train), len(text.held_out))
    targets = store.targets(range(len(store)), 0)
    count = len(targets.weight)
    assert count == sum(len(b.student_scored) for b in text.train)
    assert event.expert == "tiny"
    assert event.blocks == len(text.train)
    assert event.held_out_blocks == len(text.held_out)
    assert event.skipped_blocks == 0
    assert event.positions == text.tally.positions
    assert event.aligned + event.inside == pytest.approx(1.0)
    assert event.dropped_positions == int((targets.weight == 0).sum())
    assert event.mean_weight == pytest.approx(float(targets.weight.mean()), rel=1e-4)
    assert 0 < event.mean_weight < 1
    residual = torch.cat([torch.from_numpy(r) for r in store.column("residual")])
    assert event.mean_residual == pytest.approx(float(residual.mean()), rel=1e-4)
    assert event.mean_residual > 0  # <|im_start|> has no image


def test_an_empty_store_has_no_mean():
    tally = Tally(positions=0).scored([])
    assert (tally.mean_weight, tally.mean_residual, tally.dropped) == (0.0, 0.0, 0)
    assert tally.event("tiny", 0, 0).aligned == 0.0
