"""Scoring into shards: progress, interruption, and the statistics of the scored text."""

from __future__ import annotations

import msgspec
import pytest
import torch

from engine.config import OptimizerConfig, RunConfig, TargetsConfig
from engine.distill.align.blocks import BlockEncoder
from engine.distill.align.projection import Projector
from engine.distill.data.corpus import EncodedCorpus, TextStats, encode_corpus, held_out_keys
from engine.distill.data.shard_scoring import score_into
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.scoring import teacher_encoder
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.distill.teacher.teacher import Teacher
from tests.support.tiny_expert import SPEC, make_expert
from tests.support.toys import PROSE, chat, projector_of

CONFIG = RunConfig(
    optimizer=OptimizerConfig(max_seq_len=256),
    targets=TargetsConfig(top_k=8, draws=4, draw_epochs=2),
)

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


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"), context=512)
    return load_teacher(folder, SPEC, dtype=torch.float32)


@pytest.fixture(scope="module")
def projector(trained, teacher) -> Projector:
    return projector_of(teacher_encoder(teacher), trained["prepend"])


@pytest.fixture(scope="module")
def text(trained, teacher) -> EncodedCorpus:
    """40 conversations, encoded."""
    examples = [chat(f"Question {n}?", f"Answer {n}: {PROSE[n : n + 60]}") for n in range(40)]
    held = held_out_keys({"tiny": examples}, 0.1, 64)
    encoder = BlockEncoder(trained["prepend"], teacher_encoder(teacher), max_seq_len=256)
    return encode_corpus(examples, held, encoder, CONFIG, lambda doing: None)


@pytest.fixture
def score(text, teacher, projector, monkeypatch):
    """Scores the text into a store, in shards of about 300 positions; stops after `stop_at` blocks.

    Returns what was reported.
    """
    monkeypatch.setattr("engine.distill.data.shard_scoring.SHARD_POSITIONS", 300)

    def run(store: TargetStore, stop_at: int | None = None, config: RunConfig = CONFIG):
        reported: list[tuple[int, int]] = []

        def report(blocks: int, tokens: int) -> None:
            reported.append((blocks, tokens))
            if stop_at is not None and blocks >= stop_at:
                raise JobStopped

        score_into(store, text.train, teacher, projector, config, text.stats, report)
        return reported

    return run


def test_progress_is_reported_up_to_the_end(score, text, tmp_path):
    store = TargetStore(tmp_path, KEY)
    reported = score(store)
    assert reported == sorted(reported)
    assert reported[-1] == (len(text.train), sum(len(b.teacher_ids) for b in text.train))
    assert len(store) == len(text.train)
    assert len(store.shards) > 2
    assert store.complete
    assert TextStats(**store.meta) == text.stats


@pytest.mark.parametrize("stop_at", [1, 9, 20, 36])
def test_an_interrupted_scoring_resumes_to_the_same_shards(score, tmp_path, stop_at):
    score(TargetStore(tmp_path / "whole", KEY))
    with pytest.raises(JobStopped):
        score(TargetStore(tmp_path / "cut", KEY), stop_at)
    resumed = TargetStore(tmp_path / "cut", KEY)
    there = resumed.open()
    assert not resumed.complete
    reported = score(resumed)
    assert min(blocks for blocks, _ in reported) >= sum(s.blocks for s in resumed.shards[:there])
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


def test_complete_shards_are_not_scored_again(score, tmp_path, monkeypatch):
    score(TargetStore(tmp_path, KEY))
    monkeypatch.setattr("engine.distill.data.shard_scoring.score_blocks", None)
    store = TargetStore(tmp_path, KEY)
    assert store.open() > 2
    score(store)
    assert store.complete


def test_the_event_has_the_mean_weight_and_residual_of_the_scored_text(score, text, tmp_path):
    store = TargetStore(tmp_path, KEY)
    score(store)
    event = text.stats.with_scores([store]).event("tiny", len(text.train), len(text.held_out))
    targets = store.targets(range(len(store)), 0)
    count = len(targets.weight)
    assert count == sum(len(b.student_scored) for b in text.train)
    assert event.expert == "tiny"
    assert event.blocks == len(text.train)
    assert event.held_out_blocks == len(text.held_out)
    assert event.skipped_blocks == 0
    assert event.positions == text.stats.positions
    assert event.aligned + event.inside == pytest.approx(1.0)
    assert event.dropped_positions == int((targets.weight == 0).sum())
    assert event.mean_weight == pytest.approx(float(targets.weight.mean()), rel=1e-4)
    assert 0 < event.mean_weight < 1
    residual = torch.cat([torch.from_numpy(r) for r in store.column("residual")])
    assert event.mean_residual == pytest.approx(float(residual.mean()), rel=1e-4)
    assert event.mean_residual > 0  # <|im_start|> has no image


def test_an_empty_store_has_no_mean():
    stats = TextStats(positions=0).with_scores([])
    assert (stats.mean_weight, stats.mean_residual, stats.dropped) == (0.0, 0.0, 0)
    assert stats.event("tiny", 0, 0).aligned == 0.0
