"""Checks before a training job starts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from engine.checkpoint.hashing import record_of
from engine.checkpoint.manifest import FILES, Manifest, encode_manifest
from engine.config import RunConfig, load_config, to_json
from engine.errors import LockedError, MissingError, UsageError
from engine.preflight import launch_resume, launch_training, stored_config
from engine.run.lock import hold_lock
from engine.run.state import RunState
from engine.workspace import Workspace, write_json


@pytest.fixture
def ws(tmp_path) -> Workspace:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    make_ready(workspace, "local")
    return workspace


def make_ready(ws: Workspace, *names: str) -> None:
    """Experts of the user's own that count as ready."""
    with ws.user_config.open("a") as file:
        for name in names:
            file.write(f'[experts.{name}]\nrepo = "{name}.gguf"\n')
            (ws.root / f"{name}.gguf").write_bytes(b"GGUF")


def nano(ws: Workspace, *overrides: str, experts: tuple[str, ...] = ("local",)) -> RunConfig:
    return load_config(ws, preset="nano", experts=experts, overrides=overrides)


def store_checkpoint(ws: Workspace, step: int, config: RunConfig, status="paused") -> None:
    folder = ws.checkpoints_dir / f"step-{step:09d}"
    folder.mkdir()
    store_config(folder, to_json(config))
    write_json(ws.state_file, RunState(status=status, step=step))


def store_config(folder: Path, config: bytes) -> None:
    """Write a checkpoint's config, and a manifest that has its digest."""
    (folder / "run_config.json").write_bytes(config)
    record = record_of(config)
    manifest = Manifest(
        kind="full",
        step=int(folder.name[5:]),
        tokens_seen=0,
        reason="asked",
        score=None,
        created=0.0,
        config_digest="",
        threads=1,
        versions={},
        files=dict.fromkeys(FILES["full"], record),
    )
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))


def test_a_first_run_starts(ws):
    launch = launch_training(ws, nano(ws))
    assert (launch.resume, launch.fresh, launch.notes) == (False, False, ())


def test_an_unfinished_run_of_the_same_config_is_resumed_with_a_note(ws):
    store_checkpoint(ws, 7, nano(ws, "schedule.max_steps=9"))
    launch = launch_training(ws, nano(ws, "schedule.max_steps=20"))
    assert launch.resume and not launch.fresh
    assert launch.config.schedule.max_steps == 20
    assert "step 7" in launch.notes[0] and "from 9 to 20" in launch.notes[1]


def test_an_unfinished_run_of_another_config_is_refused_with_the_difference(ws):
    store_checkpoint(ws, 7, nano(ws))
    with pytest.raises(UsageError) as raised:
        launch_training(ws, nano(ws, "loss.temperature=3"))
    for part in ("step 7", "loss.temperature is 1.0, requested 3.0", "resume", "--fresh"):
        assert part in str(raised.value)


def test_fresh_starts_a_new_run_whatever_the_folder_holds(ws):
    store_checkpoint(ws, 7, nano(ws))
    launch = launch_training(ws, nano(ws, "loss.temperature=3"), fresh=True)
    assert launch.fresh and not launch.resume and "aside" in launch.notes[0]


def test_a_new_run_after_a_finished_one_moves_it_aside(ws):
    store_checkpoint(ws, 7, nano(ws), status="completed")
    assert launch_training(ws, nano(ws)).fresh


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_resumed(ws):
    (ws.checkpoints_dir / "config.json").write_bytes(to_json(nano(ws)))
    assert launch_resume(ws, (), None).resume
    assert launch_training(ws, nano(ws)).resume
    assert not launch_training(ws, nano(ws, "loss.temperature=3")).resume


def test_the_newest_checkpoint_with_a_readable_config_is_used(ws):
    store_checkpoint(ws, 7, nano(ws))
    for number, damage in enumerate((b"{torn", b"\xff", b"[" * 100_000), start=9):
        folder = ws.checkpoints_dir / f"step-{number:09d}"
        folder.mkdir()
        store_config(folder, damage)
    # A changed digit is valid JSON: only the digest in the manifest shows it.
    store_checkpoint(ws, 20, nano(ws))
    path = ws.checkpoints_dir / "step-000000020" / "run_config.json"
    path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
    stored = stored_config(ws)
    assert stored is not None and stored[0] == 7


def test_resume_without_a_checkpoint_names_the_command_that_starts(ws):
    with pytest.raises(MissingError, match="gladius_train train"):
        launch_resume(ws, (), None)


def test_resume_accepts_only_changes_that_are_allowed_within_a_run(ws):
    store_checkpoint(ws, 7, nano(ws))
    launch = launch_resume(ws, ["schedule.max_steps=50"], 2.0)
    assert (launch.config.schedule.max_steps, launch.config.schedule.hours) == (50, 2.0)
    with pytest.raises(UsageError, match=r"loss\.alpha is 0\.5, requested 0\.1"):
        launch_resume(ws, ["loss.alpha=0.1"], None)


def test_resume_of_a_finished_run_needs_a_longer_schedule(ws):
    store_checkpoint(ws, 7, nano(ws), status="completed")
    with pytest.raises(UsageError, match="complete"):
        launch_resume(ws, (), None)
    assert launch_resume(ws, ["schedule.max_steps=50"], None).resume


def test_experts_that_are_not_ready_are_named_with_the_option_to_train_without(ws):
    make_ready(ws, "other")
    with pytest.raises(MissingError) as raised:
        launch_training(ws, nano(ws, experts=("local", "qwen", "other", "phi")))
    text = str(raised.value)
    assert "qwen (missing), phi (missing)" in text
    assert "gladius_train download qwen phi" in text and "--experts local,other" in text


def test_no_expert_ready_names_the_download(ws):
    with pytest.raises(MissingError, match=r"no expert is ready.*download smollm2"):
        launch_training(ws, nano(ws, experts=("smollm2",)))


def test_the_expert_whose_tokenizer_is_used_must_be_downloaded(ws):
    with pytest.raises(MissingError, match=r"tokenizer is tinyllama's.*download tinyllama"):
        launch_training(ws, nano(ws, "student.tokenizer=tinyllama"))


def test_a_broken_data_file_is_found_before_the_start(ws):
    path = ws.root / "data.jsonl"
    path.write_text('{"text": "fine"}\n{"text": 1}\n')
    with pytest.raises(UsageError, match="line 2"):
        launch_training(ws, nano(ws, f"data.files=['{path}']"))


def test_public_text_needs_the_datasets_library_only_if_it_is_used(ws, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = ws.root / "data.jsonl"
    text.write_text('{"text": "fine"}\n')

    def full(*overrides: str) -> RunConfig:
        own = [f"data.files=['{text}']", "student.tokenizer=train", *overrides]
        return load_config(ws, preset="1b", experts=("local",), overrides=own)

    with pytest.raises(MissingError, match=r"pip install 'gladius\[data\]'") as raised:
        launch_training(ws, full())
    assert "data.corpora=[]" in str(raised.value) and "\n" not in str(raised.value)
    for without in ("data.generate=false", "data.corpora=[]"):
        assert launch_training(ws, full(without)).config.data.files == [str(text)]


def test_a_running_job_is_reported_before_the_files_are_read(ws):
    (ws.root / "data.jsonl").write_text("broken")
    config = nano(ws, f"data.files=['{ws.root / 'data.jsonl'}']")
    with hold_lock(ws, "train"):
        began = time.monotonic()
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            launch_training(ws, config)
        assert time.monotonic() - began < 1


def test_resume_reads_a_config_with_former_names_and_names_the_new_ones(ws):
    config = nano(ws)
    store_checkpoint(ws, 7, config)
    folder = ws.checkpoints_dir / "step-000000007"
    store_config(folder, to_json(config).replace(b"global_batch_size", b"rows_per_step"))
    launch = launch_resume(ws, (), None)
    assert launch.config == config
    assert "optimizer.rows_per_step is now called optimizer.global_batch_size" in launch.notes
    assert launch_training(ws, config).resume
