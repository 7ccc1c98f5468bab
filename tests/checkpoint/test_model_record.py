"""What a finished model says of itself: how it was made, its files' digests, no paths."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from engine.checkpoint.layout import HELD_OUT
from engine.checkpoint.model_record import RECORD, read_held_out, read_record
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.events import EvalDone
from tests.support.small_run import KeepingLink, make_config, make_root, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workspace = make_root(tmp_path_factory.mktemp("root"))
    config = make_config(workspace, schedule__max_steps=3)
    link = KeepingLink()
    assert train(workspace, config, link) == 0
    return workspace, config, link


def test_a_trained_model_records_how_it_was_made_and_its_files(run):
    workspace, _, link = run
    record = read_record(workspace.model_dir)
    assert record is not None
    there = {path.name for path in workspace.model_dir.iterdir()} - {RECORD}
    assert set(record.files) == there and "model.safetensors" in there
    for name, file in record.files.items():
        data = (workspace.model_dir / name).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (record.step, record.preset) == (3, "nano")
    assert record.evaluations[-1] == (3, link.of(EvalDone)[-1].bits_per_byte)
    assert [expert.name for expert in record.experts] == ["tiny"]
    assert str(workspace.root) not in (workspace.model_dir / RECORD).read_text()


def test_the_held_out_text_of_the_run_is_found_with_the_experts_targets(run):
    workspace, config, _ = run
    record = read_record(workspace.model_dir)
    assert record is not None and set(record.held_out) == {"tiny"}
    assert read_held_out(workspace.checkpoints_dir, config) == record.held_out
    folder = workspace.experts_cache_dir / record.held_out["tiny"]
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    key = msgspec.convert(manifest["key"], ShardKey)
    assert key.digest == folder.parent.name
    store = TargetStore(folder, key)
    assert store.open() and store.complete
    own = store.teacher_bits_per_byte()
    assert own is not None and 0 < own < 20


def test_another_run_s_held_out_text_is_not_taken_for_this_one_s(run, tmp_path):
    workspace, config, _ = run
    other = msgspec.structs.replace(config, seed=config.seed + 1)
    assert read_held_out(workspace.checkpoints_dir, other) == {}
    assert read_held_out(tmp_path, config) == {}
    (tmp_path / HELD_OUT).write_text("{")
    assert read_held_out(tmp_path, config) == {}
