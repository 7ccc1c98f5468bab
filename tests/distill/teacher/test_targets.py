"""Sparse targets: what is kept of a distribution, and the shards it is kept in."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distill.teacher.sparse_targets import BlockTargets, collect_columns, sparsify, temper
from engine.distill.teacher.target_store import ShardKey, TargetStore
from tests.support.toys import PROSE, block_of, chat, project_all, projector_of, random_logits

KEY = ShardKey(
    corpus="c",
    expert="tiny",
    expert_digest="e",
    teacher_tokenizer="t",
    student_tokenizer="s",
    temperature=2.0,
    top_k=8,
    draws=4,
    epochs=3,
    min_mass=0.05,
    seed=0,
    precision="float32",
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0, 3.0])
def test_temper_is_softmax_at_that_temperature(temperature):
    logits = random_logits(50, 7, 1)
    q = logits.softmax(0)
    torch.testing.assert_close(
        temper(q.clone(), temperature), (logits / temperature).softmax(0), rtol=1e-4, atol=1e-7
    )


@pytest.mark.parametrize("temperature", [1.0, 1.5, 2.0])
def test_tempered_columns_of_zeros_stay_zeros(temperature):
    q = torch.zeros(5, 2)
    q[:, 1] = 0.2
    tempered = temper(q, temperature)
    assert (tempered[:, 0] == 0).all()
    assert float(tempered[:, 1].sum()) == pytest.approx(1.0)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 60),
    top_k=st.integers(1, 70),
    draws=st.integers(1, 9),
    epochs=st.integers(1, 3),
    scale=st.floats(0.0, 20.0),
    seed=st.integers(0, 1 << 16),
)
def test_no_mass_is_lost_with_the_tail(size, top_k, draws, epochs, scale, seed):
    q_t = random_logits(size, 5, seed, scale).softmax(0)
    kept = sparsify(q_t, top_k, draws, epochs, generator(seed))
    k = min(top_k, size)
    assert kept.top_ids.shape == kept.top_mass.shape == (5, k)
    assert kept.draws.shape == (5, epochs, draws)
    torch.testing.assert_close(kept.top_mass.sum(1) + kept.tail, torch.ones(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.top_mass, q_t.t().gather(1, kept.top_ids))
    assert (kept.top_mass[:, :-1] >= kept.top_mass[:, 1:]).all()
    if k < size:
        least = kept.top_mass[:, -1]
        rest = q_t.t().scatter(1, kept.top_ids, 0.0)
        assert (rest.amax(1) <= least).all()
        # a draw is a token of the rest that has mass
        picked = rest.gather(1, kept.draws.reshape(5, -1))
        assert (picked[kept.tail > 0] > 0).all()
    entropy = -torch.special.xlogy(q_t, q_t).sum(0)
    torch.testing.assert_close(kept.entropy, entropy, atol=1e-5, rtol=1e-5)


def test_draws_follow_the_distribution_of_the_tail():
    q_t = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05])[:, None]
    kept = sparsify(q_t, 1, 8, 5000, generator())
    counts = torch.bincount(kept.draws.flatten(), minlength=5).double()
    share = counts / counts.sum()
    # 40,000 draws: four standard deviations of an independent draw's share
    expected = torch.tensor([0.0, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 40000).sqrt()).all()


def test_each_epoch_has_draws_of_its_own_and_a_seed_gives_them_again():
    q_t = random_logits(400, 6, 0, 1.0).softmax(0)
    one = sparsify(q_t, 4, 8, 3, generator(5))
    two = sparsify(q_t, 4, 8, 3, generator(5))
    other = sparsify(q_t, 4, 8, 3, generator(6))
    assert torch.equal(one.draws, two.draws)
    assert not torch.equal(one.draws, other.draws)
    assert not torch.equal(one.draws[:, 0], one.draws[:, 1])


def scored_blocks(trained, texts: list[str], seed: int = 0) -> list[BlockTargets]:
    """Real blocks with real projections of random logits."""
    student, teacher = trained["prepend"], trained["byte_level"]
    projector = projector_of(teacher, student)
    found = []
    for n, text in enumerate(texts):
        block = block_of(chat("Tell me.", text), student, teacher)
        logits = random_logits(teacher.vocabulary.size, len(block.teacher_scored), seed + n)
        projected = project_all(projector, logits, block)
        q_t = temper(projected.q.clone(), KEY.temperature)
        kept = sparsify(q_t, KEY.top_k, KEY.draws, KEY.epochs, generator(seed + n))
        columns = collect_columns([(projected, kept)], len(block.alignment))
        found.append(BlockTargets(block=block, **columns))
    return found


TEXTS = ["The river.", PROSE[:90], "x", PROSE[90:200], "It runs to the sea."]


@pytest.fixture
def store(trained, tmp_path) -> TargetStore:
    """A complete store of three shards: 2, 2 and 1 blocks."""
    return fill(TargetStore(tmp_path / "shards", KEY), trained)


def shards_of(trained) -> list[list[BlockTargets]]:
    blocks = scored_blocks(trained, TEXTS)
    return [blocks[:2], blocks[2:4], blocks[4:]]


def fill(store: TargetStore, trained) -> TargetStore:
    size = trained["prepend"].vocabulary.size
    for shard in shards_of(trained)[len(store.shards) :]:
        store.add(shard, size)
    store.finish({"positions": 7})
    return store


def files_of(store: TargetStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


def check_content(store: TargetStore, blocks: list[BlockTargets]) -> None:
    assert len(store) == len(blocks)
    lengths = [len(part.block.student_ids) for part in blocks]
    assert store.token_counts().tolist() == lengths
    for n, part in enumerate(blocks):
        row = store.block(n)
        np.testing.assert_array_equal(row.ids, part.block.student_ids)
        np.testing.assert_array_equal(row.scored, part.block.student_scored)
        np.testing.assert_array_equal(row.is_end, part.block.is_end)
        assert row.text_bytes == part.block.text_bytes
        for epoch in range(KEY.epochs + 1):
            targets = store.targets([n], epoch)
            ids = np.concatenate([part.top_ids, part.draws[:, epoch % KEY.epochs]], axis=1)
            np.testing.assert_array_equal(targets.ids.numpy(), ids)
            np.testing.assert_array_equal(targets.mass[:, : KEY.top_k].numpy(), part.top_mass)
            draws = targets.mass[:, KEY.top_k :].sum(1).numpy()
            np.testing.assert_allclose(draws, part.tail, rtol=1e-5, atol=1e-7)
            np.testing.assert_array_equal(targets.weight.numpy(), part.weight)
            np.testing.assert_array_equal(targets.entropy.numpy(), part.entropy)


def test_what_is_stored_comes_back(store, trained):
    blocks = scored_blocks(trained, TEXTS)
    check_content(store, blocks)
    again = TargetStore(store.folder, KEY)
    assert again.open() == 3
    assert again.complete
    assert again.meta == {"positions": 7}
    check_content(again, blocks)


def test_targets_of_several_blocks_stand_one_after_the_other(store):
    order = [4, 0, 3]
    together = store.targets(order, 1)
    apart = [store.targets([n], 1) for n in order]
    for name in ("ids", "mass", "weight", "entropy"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(t, name) for t in apart]))


def test_targets_sum_to_one_where_the_expert_is_heard(store):
    heard = 0
    for epoch in range(KEY.epochs):
        targets = store.targets(range(len(store)), epoch)
        soft = targets.weight > 0
        heard += int(soft.sum())
        sums = targets.mass.sum(1)
        torch.testing.assert_close(sums[soft], torch.ones_like(sums[soft]), atol=1e-5, rtol=0)
        assert (sums[~soft] == 0).all()
        assert (targets.mass >= 0).all()
    assert heard > 100


def test_columns_are_given_whole_for_the_metrics(store, trained):
    blocks = scored_blocks(trained, TEXTS)
    for name in ("weight", "residual"):
        column = np.concatenate(list(store.column(name)))
        np.testing.assert_array_equal(
            column, np.concatenate([getattr(part, name) for part in blocks])
        )


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(trained, tmp_path, size, dtype):
    store = TargetStore(tmp_path, KEY)
    store.add(shards_of(trained)[0], size)
    assert store.open() == 1
    assert {next(store.column(name)).dtype for name in ("top_ids", "draws")} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "change",
    [
        {"corpus": "other"},
        {"expert_digest": "other"},
        {"student_tokenizer": "other"},
        {"temperature": 1.0},
        {"top_k": 9},
        {"draws": 5},
        {"seed": 1},
        {"precision": "bfloat16"},
        {"version": 99},
    ],
    ids=lambda change: next(iter(change)),
)
def test_shards_of_another_key_are_not_used(store, change):
    other = TargetStore(store.folder, msgspec.structs.replace(KEY, **change))
    assert other.open() == 0
    assert len(other) == 0
    assert not other.complete


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-7] ^= 4
    elif how == "cut":
        data = data[:-20]
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_shard_and_the_later_ones_are_made_again(store, trained, how, number):
    good = files_of(store)
    damage(store.folder / f"shard-{number:05d}.safetensors", how)
    again = TargetStore(store.folder, KEY)
    assert again.open() == number
    assert not again.complete
    assert len(again) == [0, 2, 4][number]
    fill(again, trained)
    assert files_of(again) == good
    check_content(again, scored_blocks(trained, TEXTS))


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_store_goes_on_and_gives_the_same_bytes(store, trained, tmp_path, written):
    cut = TargetStore(tmp_path / "cut", KEY)
    for shard in shards_of(trained)[:written]:
        cut.add(shard, trained["prepend"].vocabulary.size)
    # killed in the middle of a write: half a file under a temporary name
    cut.folder.mkdir(exist_ok=True)
    (cut.folder / ".tmp-123-shard.safetensors").write_bytes(b"half")
    resumed = TargetStore(tmp_path / "cut", KEY)
    assert resumed.open() == written
    assert not resumed.complete
    fill(resumed, trained)
    assert files_of(resumed) == files_of(store)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"key": {}}', b"\xff\xfe"])
def test_a_damaged_manifest_means_no_shards(store, content):
    (store.folder / "manifest.json").write_bytes(content)
    again = TargetStore(store.folder, KEY)
    assert again.open() == 0
    assert len(again) == 0


def test_a_manifest_names_no_file_outside_its_folder(store):
    path = store.folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    outside = store.folder.parent / "outside.safetensors"
    (store.folder / manifest["shards"][0]["file"]).rename(outside)
    manifest["shards"][0]["file"] = "../outside.safetensors"
    path.write_text(json.dumps(manifest))
    assert TargetStore(store.folder, KEY).open() == 0


def test_an_empty_store_is_empty(tmp_path):
    store = TargetStore(tmp_path / "none", KEY)
    assert store.open() == 0
    assert len(store) == 0
    assert store.token_counts().tolist() == []
