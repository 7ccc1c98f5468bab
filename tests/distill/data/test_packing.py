"""The order of the data and the tensors of a batch."""

from __future__ import annotations

import json
from collections import Counter

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.distill.align.blocks import LENGTH_STEP, EncodedBlock
from engine.distill.data.cursors import (
    Cursor,
    StreamPosition,
    cursors_from_json,
    cursors_to_json,
)
from engine.distill.data.packing import Mixer, make_batch, pack
from engine.distill.data.sources import EpochBlocks

MAX = 100
block_lengths = st.lists(st.integers(1, MAX), min_size=1, max_size=60).map(
    lambda found: np.array(found, dtype=np.int64)
)


@settings(max_examples=80, deadline=None)
@given(lengths=block_lengths, seed=st.integers(0, 99))
def test_packing_has_each_block_once_and_no_row_too_long(lengths, seed):
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = pack(lengths, order, MAX)
    assert sorted(block for row in rows for block in row) == list(range(len(lengths)))
    assert all(lengths[list(row)].sum() <= MAX for row in rows)


def test_packing_fills_rows():
    lengths = np.random.default_rng(0).integers(5, 60, size=2000)
    rows = pack(lengths, np.arange(2000), MAX)
    assert lengths.sum() / (len(rows) * MAX) > 0.9


LENGTHS = {
    "one": np.random.default_rng(1).integers(10, 60, size=37),
    "two": np.random.default_rng(2).integers(10, 60, size=11),
    "three": np.random.default_rng(3).integers(10, 60, size=90),
}
MIX = {"one": 0.5, "two": 0.2, "three": 0.3}


class FixedBlocks:
    """A source that has the same blocks in each epoch."""

    def __init__(self, token_counts: np.ndarray) -> None:
        self._token_counts = token_counts

    def open_epoch(self, epoch: int, begins: StreamPosition) -> EpochBlocks:
        return EpochBlocks(self._token_counts)

    def release_before(self, epoch: int) -> None:
        pass


def mixer(seed: int = 0, rows: int = 4) -> Mixer:
    return Mixer({name: FixedBlocks(part) for name, part in LENGTHS.items()}, MAX, rows, seed)


def take_steps(the_mixer: Mixer, steps: int, mix=MIX, cursors=None):
    cursors = cursors or {}
    chosen = []
    for _ in range(steps):
        rows, cursors = the_mixer.next(cursors, mix)
        chosen.append(rows)
    return chosen, cursors


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_every_step_has_global_batch_size_rows(rows):
    chosen, _ = take_steps(mixer(rows=rows), 30)
    assert all(len(step) == rows for step in chosen)
    assert all(
        sum(int(LENGTHS[row.source][n]) for n in row.blocks) <= MAX
        for step in chosen
        for row in step
    )


def test_experts_get_their_shares():
    chosen, _ = take_steps(mixer(), 500)
    counts = Counter(row.source for step in chosen for row in step)
    for expert, share in MIX.items():
        # a share is never behind or ahead by more than a row
        assert abs(counts[expert] - 2000 * share) <= 1


def test_a_source_without_a_share_gets_no_rows():
    chosen, _ = take_steps(mixer(), 50, {"one": 0.0, "two": 1.0, "three": 0.0})
    assert {row.source for step in chosen for row in step} == {"two"}


def test_each_epoch_has_each_block_once_in_a_new_order():
    chosen, cursors = take_steps(mixer(), 400)
    seen: dict[tuple[str, int], list[int]] = {}
    for step in chosen:
        for row in step:
            seen.setdefault((row.source, row.epoch), []).extend(row.blocks)
    for expert, lengths in LENGTHS.items():
        assert cursors[expert].epoch >= 2
        for epoch in range(cursors[expert].epoch):
            assert sorted(seen[expert, epoch]) == list(range(len(lengths)))
        assert seen[expert, 0] != seen[expert, 1]


def test_rows_are_a_function_of_seed_and_cursors():
    whole, _ = take_steps(mixer(), 60)
    first, cursors = take_steps(mixer(), 23)
    rest, _ = take_steps(mixer(), 37, cursors=cursors)  # a mixer that has chosen nothing yet
    assert first + rest == whole
    other, _ = take_steps(mixer(seed=1), 60)
    assert other != whole


def test_next_is_repeatable_and_changes_no_cursor():
    the_mixer = mixer()
    _, cursors = take_steps(the_mixer, 30)
    before = dict(cursors)
    one = the_mixer.next(cursors, MIX)
    take_steps(the_mixer, 40, cursors=cursors)  # through other epochs and back
    assert the_mixer.next(cursors, MIX) == one
    assert cursors == before


def test_cursors_survive_json_exactly():
    _, cursors = take_steps(mixer(), 33, {"one": 1 / 3, "two": 1 / 7, "three": 1 - 1 / 3 - 1 / 7})
    text = json.dumps(cursors_to_json(cursors))
    assert cursors_from_json(json.loads(text)) == cursors


def test_a_cursor_of_the_wrong_shape_is_refused():
    with pytest.raises(msgspec.ValidationError):
        cursors_from_json({"one": {"epoch": "first"}})


def test_rows_of_one_source_are_adjacent():
    chosen, _ = take_steps(mixer(rows=9), 40)
    for step in chosen:
        names = [row.source for row in step]
        assert names == sorted(names)


def test_a_changed_mix_continues_at_each_cursor():
    the_mixer = mixer()
    first, cursors = take_steps(the_mixer, 5, {"one": 1.0})
    assert cursors["two"] == Cursor()
    second, after = take_steps(the_mixer, 5, {"two": 0.8, "one": 0.2}, cursors)
    rows = [row for step in first + second for row in step if row.source == "one"]
    blocks = [n for row in rows if row.epoch == 0 for n in row.blocks]
    assert len(blocks) == len(set(blocks))
    assert after["two"].row + after["two"].epoch > 0


def row_of(length: int, first_scored: int, seed: int) -> EncodedBlock:
    ids = np.random.default_rng(seed).integers(1, 50, size=length)
    scored = np.arange(first_scored, length)
    return EncodedBlock(ids=ids, scored=scored, is_end=scored == length - 1, text_bytes=length)


def test_a_batch_predicts_each_scored_token_from_the_one_before_it():
    packed = [[row_of(7, 3, 0), row_of(5, 1, 1)], [row_of(4, 2, 2)]]
    batch = make_batch(packed, torch.device("cpu"))
    assert batch.input_ids.shape == (2, LENGTH_STEP)
    assert batch.tokens == 16
    assert (batch.input_ids[1, 4:] == 0).all()
    blocks = [block for row in packed for block in row]
    assert batch.labels.tolist() == np.concatenate([b.ids[b.scored] for b in blocks]).tolist()
    assert batch.is_end.tolist() == np.concatenate([b.is_end for b in blocks]).tolist()
    before = np.concatenate([b.ids[b.scored - 1] for b in blocks])
    assert batch.input_ids.flatten()[batch.gather].tolist() == before.tolist()


def test_a_block_attends_to_itself_and_nothing_ahead():
    batch = make_batch([[row_of(3, 1, 0), row_of(2, 1, 1)], [row_of(4, 1, 2)]], torch.device("cpu"))
    size = batch.input_ids.shape[1]
    assert size % LENGTH_STEP == 0
    assert batch.mask.shape == (2, 1, size, size)
    assert batch.position_ids[:, :5].tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    block = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[:3, :3] = torch.tensor(block, dtype=torch.bool)
    expected[3:, 3:] = torch.tensor([[1, 0], [1, 1]], dtype=torch.bool)
    assert torch.equal(batch.mask[0, 0, :5, :5], expected)
    # padding sees something (a row of nothing would be NaN), and no token sees padding
    assert batch.mask[:, 0].any(2).all()
    assert not batch.mask[0, 0, :5, 5:].any()
    assert not batch.mask[1, 0, :4, 4:].any()
