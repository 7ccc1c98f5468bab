"""Checkpoints: published whole or not at all, found broken when broken, and few of them kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from engine import workspace
from engine.checkpoint import writer
from engine.checkpoint.errors import CheckpointError, NonFinite, OutOfSpace
from engine.checkpoint.store import CheckpointStore
from engine.errors import MissingError
from tests.support.checkpoint_faults import CONFIG, assert_same, make_state
from tests.support.paths import REPO


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


class Rejected(list):
    """Collects what load_newest rejects."""

    def __call__(self, path: Path, reason: str, moved_to: Path | None) -> None:
        self.append((path.name, reason, moved_to and moved_to.name))


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def save_steps(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(make_state(step), **CONFIG)


def flip_a_bit(path: Path, place: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


# Saving and loading


def test_what_was_saved_is_loaded_bit_for_bit(store: CheckpointStore) -> None:
    saved = store.save(make_state(7), **CONFIG, reason="asked")
    assert saved.path == store.folder / "step-000000007"
    loaded, manifest = store.load(7)
    assert_same(loaded, make_state(7))
    assert (manifest.step, manifest.reason, manifest.config_digest) == (7, "asked", "d1")
    assert manifest.threads == torch.get_num_threads()
    assert saved.bytes == sum(r.bytes for r in manifest.files.values())
    assert store.read_config(7) == CONFIG["config_json"]


def test_a_checkpoint_holds_no_pickle(store: CheckpointStore) -> None:
    folder = store.save(make_state(1), **CONFIG).path
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}


def test_a_step_is_never_written_over(store: CheckpointStore) -> None:
    first = store.save(make_state(5), **CONFIG)
    before = {path: path.stat() for path in first.path.iterdir()}
    other = make_state(6)
    other.step = 5
    assert store.save(other, **CONFIG).path == first.path
    assert {path: path.stat() for path in first.path.iterdir()} == before
    assert_same(store.load(5)[0], make_state(5))


def test_a_broken_step_is_moved_aside_and_saved_again(store: CheckpointStore) -> None:
    flip_a_bit(store.save(make_state(5), **CONFIG).path / "model.safetensors")
    store.save(make_state(5), **CONFIG)
    assert names(store) == ["rejected-step-000000005", "step-000000005"]
    assert_same(store.load(5)[0], make_state(5))


def test_a_disk_that_changes_what_is_written_is_found_at_once(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(store, 1, 2)
    real = os.write

    def lying(descriptor: int, data: memoryview) -> int:
        if len(data) > 4000:
            data = memoryview(bytes(data[:1000]) + b"\x55" + bytes(data[1001:]))
        return real(descriptor, data)

    monkeypatch.setattr(workspace.os, "write", lying)
    with pytest.raises(CheckpointError, match=r"does not match what was written .*check the disk"):
        store.save(make_state(3), **CONFIG)
    monkeypatch.undo()
    assert names(store) == ["rejected-step-000000003", "step-000000001", "step-000000002"]


def test_long_work_sends_heartbeats(tmp_path: Path) -> None:
    beats: list[int] = []
    store = CheckpointStore(tmp_path, heartbeat=lambda: beats.append(1))
    store.save(make_state(1), **CONFIG)
    assert len(beats) >= 6  # written and read back
    beats.clear()
    store.load(1)
    assert len(beats) >= 3


# What is kept


def test_the_newest_and_the_protected_one_are_kept(store: CheckpointStore) -> None:
    store.save(make_state(1), **CONFIG, protect=True)
    save_steps(store, 2, 3, 4)
    assert [(i.step, i.protected) for i in store.list()] == [(1, True), (3, False), (4, False)]
    store.save(make_state(5), **CONFIG, protect=True)
    assert [(i.step, i.protected) for i in store.list()] == [(4, False), (5, True)]


def test_a_step_already_saved_can_be_protected(store: CheckpointStore) -> None:
    save_steps(store, 1)
    store.save(make_state(1), **CONFIG, protect=True)
    save_steps(store, 2, 3, 4)
    assert [i.step for i in store.list()] == [1, 3, 4]
    assert_same(store.load(1)[0], make_state(1))


def test_broken_and_foreign_folders_do_not_count_among_those_kept(store: CheckpointStore) -> None:
    save_steps(store, 1, 2)
    (store.folder / "step-000000002" / "manifest.json").unlink()
    (store.folder / "step-000000009").mkdir()
    save_steps(store, 3)
    assert [i.step for i in store.list()] == [1, 2, 3, 9]
    save_steps(store, 4)
    assert [i.step for i in store.list()] == [2, 3, 4, 9]


def test_the_checkpoint_just_saved_stays_beside_later_ones(store: CheckpointStore) -> None:
    save_steps(store, 10, 20, 5)
    assert [i.step for i in store.list()] == [5, 10, 20]


def test_at_least_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    save_steps(store, 1, 2, 3)
    assert [i.step for i in store.list()] == [2, 3]


def test_the_best_weights_replace_the_former_best(store: CheckpointStore) -> None:
    assert store.save_best(make_state(2), **CONFIG, score=2.5) is not None
    save_steps(store, 3, 4, 5)
    store.save_best(make_state(5), **CONFIG, score=2.0)
    assert names(store) == ["best-000000005", "step-000000004", "step-000000005"]
    best, manifest = store.load("best")
    assert_same(best, make_state(5), weights_only=True)
    assert manifest.score == 2.0 and not best.optimizer and not best.scalars


def test_the_best_weights_of_a_step_done_again_replace_those_of_the_first_time(
    store: CheckpointStore,
) -> None:
    store.save_best(make_state(5), **CONFIG, score=2.0)
    again = make_state(6)
    again.step = 5
    store.save_best(again, **CONFIG, score=1.9)
    assert len(names(store)) == 1
    assert torch.equal(store.load("best")[0].model_state["norm"], make_state(6).model_state["norm"])


def test_no_best_weights_are_kept_where_they_are_not_wanted(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_best=False)
    assert store.save_best(make_state(2), **CONFIG, score=2.5) is None
    assert not list(tmp_path.iterdir())


def test_superseded_checkpoints_are_kept_aside_until_the_next_save(
    store: CheckpointStore,
) -> None:
    save_steps(store, 10, 20)
    store.supersede_after(10)
    assert names(store) == ["step-000000010", "superseded-step-000000020"]
    found = store.load_newest(Rejected())
    assert found is not None and found[0].step == 10
    again = make_state(99)
    again.step = 20
    store.save(again, **CONFIG)
    assert names(store) == ["step-000000010", "step-000000020"]
    loaded, _ = store.load(20)
    assert torch.equal(loaded.model_state["norm"], again.model_state["norm"])


def test_leftovers_of_a_crash_go_and_nothing_else(store: CheckpointStore) -> None:
    store.remove_temporaries()  # no folder yet
    save_steps(store, 1)
    (store.folder / ".tmp-step-000000002").mkdir()
    (store.folder / ".tmp-step-000000002" / "model.safetensors").write_bytes(b"half")
    (store.folder / "journal.jsonl").write_bytes(b"")
    store.remove_temporaries()
    assert names(store) == ["journal.jsonl", "step-000000001"]


# What is refused


@pytest.mark.parametrize("part", ["model", "optimizer", "scalars"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_never_published(
    store: CheckpointStore, part: str, value: float
) -> None:
    save_steps(store, 1)
    state = make_state(2)
    if part == "model":
        state.model_state["norm"][7] = value
    elif part == "optimizer":
        state.optimizer["exp_avg.embed"][3, 3] = value
    else:
        state.scalars["ema"] = value
    with pytest.raises(NonFinite):
        store.save(state, **CONFIG)
    assert names(store) == ["step-000000001"]


def test_non_finite_weights_never_become_the_best(store: CheckpointStore) -> None:
    store.save_best(make_state(1), **CONFIG, score=2.0)
    state = make_state(2)
    state.model_state["embed"][0, 0] = float("nan")
    with pytest.raises(NonFinite):
        store.save_best(state, **CONFIG, score=1.0)
    assert names(store) == ["best-000000001"]


def test_a_disk_without_room_is_refused_with_the_figures_before_anything_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(store, 1, 2)
    store.supersede_after(1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    with pytest.raises(OutOfSpace, match=r"needs 0\.00 GiB .* has 0\.00 GiB free; make room"):
        store.save(make_state(2), **CONFIG)
    # What is to be done again anyway makes room first.
    assert names(store) == ["step-000000001"]


# What is found broken


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "run_config.json",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove"])
def test_any_damage_is_found_moved_aside_and_reported(
    store: CheckpointStore, name: str, damage: str
) -> None:
    save_steps(store, 1, 2)
    path = store.folder / "step-000000002" / name
    if damage == "flip":
        flip_a_bit(path, place=path.stat().st_size // 2)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "grow":
        path.write_bytes(path.read_bytes() + b"\n")
    else:
        path.unlink()
    rejected = Rejected()
    found = store.load_newest(rejected)
    assert found is not None and found[0].step == 1
    assert_same(found[0], make_state(1))
    [(which, reason, moved_to)] = rejected
    assert which == "step-000000002" and moved_to == "rejected-step-000000002"
    assert name in reason and "\n" not in reason
    assert names(store) == ["rejected-step-000000002", "step-000000001"]


def test_when_none_verifies_nothing_is_deleted(store: CheckpointStore) -> None:
    save_steps(store, 1, 2)
    for step in (1, 2):
        flip_a_bit(store.folder / f"step-00000000{step}" / "model.safetensors")
    before = {p.name: p.read_bytes() for p in (store.folder / "step-000000001").iterdir()}
    rejected = Rejected()
    assert store.load_newest(rejected) is None
    assert [r[0] for r in rejected] == ["step-000000002", "step-000000001"]
    moved = store.folder / "rejected-step-000000001"
    assert {p.name: p.read_bytes() for p in moved.iterdir()} == before
    save_steps(store, 1)
    flip_a_bit(store.folder / "step-000000001" / "model.safetensors")
    assert store.load_newest(rejected) is None
    assert (store.folder / "rejected-step-000000001-2").is_dir()


def test_foreign_folders_are_rejected_or_left_alone(store: CheckpointStore, tmp_path: Path) -> None:
    save_steps(store, 1)
    (store.folder / "step-000000009").mkdir()
    (store.folder / "step-000000009" / "notes.txt").write_text("not ours")
    (store.folder / "step-nine").mkdir()
    (store.folder / "step-000000008").write_text("a file")
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.folder / "step-000000010").symlink_to(outside)
    os.rename(store.save(make_state(2), **CONFIG).path, store.folder / "step-000000011")
    rejected = Rejected()
    found = store.load_newest(rejected)
    assert found is not None and found[0].step == 1
    assert rejected == [
        ("step-000000011", "it holds step 2", "rejected-step-000000011"),
        ("step-000000009", "manifest.json is missing", "rejected-step-000000009"),
    ]
    assert outside.is_dir() and (store.folder / "step-000000010").is_symlink()


def test_a_link_in_place_of_a_file_is_not_followed(store: CheckpointStore, tmp_path: Path) -> None:
    save_steps(store, 1, 2)
    path = store.folder / "step-000000002" / "model.safetensors"
    os.rename(path, tmp_path / "elsewhere.safetensors")
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    rejected = Rejected()
    found = store.load_newest(rejected)
    assert found is not None and found[0].step == 1
    assert rejected[0][1] == "model.safetensors is not a plain file"


def test_load_newest_can_be_bounded(store: CheckpointStore) -> None:
    save_steps(store, 10, 20)
    found = store.load_newest(Rejected(), up_to=19)
    assert found is not None and found[0].step == 10
    assert store.load_newest(Rejected(), up_to=9) is None


def test_a_chosen_checkpoint_is_loaded_or_the_reason_is_reported(store: CheckpointStore) -> None:
    with pytest.raises(MissingError, match="available steps: none"):
        store.load("best")
    save_steps(store, 1, 2)
    with pytest.raises(MissingError, match="available steps: 1, 2"):
        store.load(3)
    assert store.load(store.folder / "step-000000002")[0].step == 2
    flip_a_bit(store.folder / "step-000000002" / "run_config.json", place=0)
    for ask in (store.load, store.read_config):
        with pytest.raises(CheckpointError, match=r"damaged .*choose another checkpoint"):
            ask(2)
    assert (store.folder / "step-000000002").is_dir()


# Faults in a process of its own


def faults(what: str, folder: Path) -> object:
    script = REPO / "tests" / "support" / "checkpoint_faults.py"
    done = subprocess.run(
        [sys.executable, str(script), what, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kill_9_at_every_call_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    # What a killed process wrote is in the page cache, whatever the disk: memory is as good, and
    # does not wait for thousands of fsyncs.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        kills = faults("kill", Path(folder))
    assert isinstance(kills, int) and kills > 80


def test_a_disk_that_runs_full_leaves_the_former_checkpoints_and_no_leftovers(
    tmp_path: Path,
) -> None:
    assert faults("full", tmp_path) == 6


def test_saving_and_loading_hold_no_second_copy_in_memory(tmp_path: Path) -> None:
    added = faults("memory", tmp_path)  # of a state of 128 MiB
    assert isinstance(added, dict)
    assert added["saving"] < 48 and added["loading"] < 48
