"""`clean` as a real process: what it lists, what it deletes, and what it never touches."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from engine.cleaning import CLEANABLE
from engine.errors import LockedError
from engine.events import Job
from engine.run.lock import hold_lock
from engine.workspace import Workspace
from gladius_tui import cli
from tests.support.paths import REPO


@pytest.fixture
def ws(tmp_path) -> Workspace:
    workspace = Workspace.find(tmp_path / "root")
    workspace.create()
    return workspace


def clean(ws: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), "clean", *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        timeout=60,
    )


def fill(ws: Workspace) -> None:
    """Create a file of every kind that `clean` knows."""
    for path in (
        ws.downloads_dir / "qwen" / "a.part",
        ws.cache_dir / "hub" / "blob",
        ws.experts_dir / "qwen" / "model.safetensors",
        ws.experts_cache_dir / "qwen" / "train" / ".tmp-1-shard",
        ws.checkpoints_dir / "step-000000001" / "manifest.json",
        ws.checkpoints_dir / ".tmp-step-000000002" / "model.safetensors",
        ws.log_file(),
        ws.history_file,
        ws.model_dir / "model.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100))


def digest(folder: Path) -> str:
    """A digest of every name, kind and byte below the folder."""
    found = hashlib.sha256()
    for parent, folders, files in sorted(os.walk(folder)):
        folders.sort()
        for name in sorted((*folders, *files)):
            path = Path(parent, name)
            content = os.readlink(path) if path.is_symlink() else ""
            if path.is_file():
                content = path.read_bytes().hex()
            found.update(f"{path.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()


@pytest.mark.parametrize("linked", ["tmp", "tmp/checkpoints", "tmp/models/qwen", "models"])
def test_the_target_of_a_link_is_not_changed_by_a_byte(ws: Workspace, tmp_path, linked):
    fill(ws)
    moved = tmp_path / "elsewhere"
    (ws.root / linked).rename(moved)
    (ws.root / linked).symlink_to(moved)
    (ws.root / "tmp/logs/training_20200101.log").symlink_to(moved)
    before = digest(moved)
    result = clean(ws, *CLEANABLE, "--confirm")
    assert digest(moved) == before
    if linked == "tmp":
        assert result.returncode == 2 and "is a link" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert not (ws.downloads_dir / "qwen").exists()
        assert not os.path.lexists(ws.root / "tmp/logs/training_20200101.log")
    reported = "is a symbolic link: its target is not cleaned" in result.stderr
    assert reported == (linked in ("tmp/checkpoints", "models"))


def test_without_names_only_leftovers_are_deleted(ws: Workspace):
    fill(ws)
    shown = clean(ws)
    assert shown.returncode == 0 and "4 entries would be deleted" in shown.stdout
    assert (ws.downloads_dir / "qwen").exists()
    done = json.loads(clean(ws, "--confirm", "--json").stdout)
    assert done["deleted"] and len(done["entries"]) == 4 and not done["failed"]
    for kept in (ws.history_file, ws.cache_dir / "hub", ws.experts_dir / "qwen", ws.model_dir,
                 ws.checkpoints_dir / "step-000000001"):  # fmt: skip
        assert kept.exists()
    assert clean(ws).stdout == "nothing to clean\n"


def test_clean_is_refused_while_any_job_is_running_and_names_it(ws: Workspace, capsys):
    fill(ws)
    for job in get_args(Job):
        with hold_lock(ws, job):
            assert cli.main(["--root", str(ws.root), "clean", "--confirm"]) == 75
            assert f"{job} is running here" in capsys.readouterr().err
    assert (ws.downloads_dir / "qwen").exists()


def test_no_job_can_start_while_clean_deletes(ws: Workspace, monkeypatch):
    fill(ws)
    refused = []

    def try_to_start(path: Path) -> None:
        for job in get_args(Job):
            with pytest.raises(LockedError), hold_lock(ws, job):
                pass
            refused.append(job)

    monkeypatch.setattr("engine.workspace.remove_entry", try_to_start)
    assert cli.main(["--root", str(ws.root), "clean", "downloads", "--confirm"]) == 0
    assert refused == list(get_args(Job))


def test_what_cant_be_deleted_is_named_and_the_rest_is_deleted(ws: Workspace, monkeypatch, capsys):
    from engine import workspace

    fill(ws)
    remove_entry = workspace.remove_entry

    def refuse_one(path: Path) -> None:
        if path.name == "qwen":
            raise PermissionError(13, "Permission denied")
        remove_entry(path)

    monkeypatch.setattr(workspace, "remove_entry", refuse_one)
    assert cli.main(["--root", str(ws.root), "clean", "--confirm"]) == 1
    output = capsys.readouterr()
    assert "qwen: Permission denied" in output.err and "3 entries deleted" in output.out
    assert "qwen" not in output.out.replace("experts_cache/qwen", "")
    assert not ws.log_file().exists()


def test_an_empty_folder_stays_empty(tmp_path):
    ws = Workspace.find(tmp_path)
    assert clean(ws, "--confirm").stdout == "nothing to clean\n"
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_user_stay_whatever_they_are_called(ws: Workspace):
    """Below models/ what is recorded is deleted, elsewhere only names that the program gives."""
    from engine.cleaning import record_made

    mine = [
        ws.models / name
        for name in (
            ".tmp-notes/a", "mine/.tmp-1-draft", "mine/x.tmp1", "mine/.my.tmp", ".old-thing/a",
            "gladius_primary/.mine.1-2.tmp", "gladius_primary/notes.md", "other/model.safetensors",
        )
    ]  # fmt: skip
    mine += [
        ws.logs_dir / "my.log",
        ws.logs_dir / "history-of-mine.txt",
        ws.logs_dir / "launch_notes.out",
        ws.checkpoints_dir / ".tmp-mine",
        ws.tmp / "notes.tmp",
    ]
    fill(ws)
    made = [
        ws.models / ".tmp-gladius_primary" / "model.safetensors",
        ws.model_dir / ".gladius.gguf.q8_0-77.tmp",
        ws.logs_dir / "launch_train_20260101-000000_ab12.out",
        ws.logs_dir / "training_20260101.2.log",
        ws.tmp / ".train.lock.12-34.tmp",
    ]
    record_made(ws, made[1], ws.models / ".." / ".." / "etc")
    with open(ws.tmp / "made.jsonl", "ab") as file:
        file.write(b'{"path":"../mine"}\n{"path":"models/../x"}\n\xff\n' + b"[" * 9000 + b"\n")
    for path in (*mine, *made):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert clean(ws, "--confirm").returncode == 0
    assert not [path for path in made if path.exists()]
    assert not [path for path in mine if not path.exists()]
    # Of a finished model the files that its record names, and what was recorded.
    (ws.model_dir / "gladius.json").write_text('{"files": {"model.safetensors": 1, "../a": 2}}')
    record_made(ws, ws.model_dir / "gladius.gguf")
    (ws.model_dir / "gladius.gguf").write_text("x")
    assert clean(ws, "models", "--confirm").returncode == 0
    assert not [path for path in mine if not path.exists()]
    # A folder of the user among the experts has no record of a download.
    (ws.experts_dir / "my models").mkdir()
    assert clean(ws, "experts", "--confirm").returncode == 0
    assert os.listdir(ws.experts_dir) == ["my models"]
    left = sorted(path.name for path in ws.model_dir.iterdir())
    assert left == [".mine.1-2.tmp", "notes.md"]


def test_names_that_are_not_utf_8_are_listed_and_deleted(ws: Workspace):
    path = os.fsencode(ws.downloads_dir) + b"/\xff\x1b[2J.part"
    Path(os.fsdecode(path)).write_text("x")
    for words in ((), ("--json",)):
        result = clean(ws, *words)
        assert result.returncode == 0 and "\\udcff\\u001b[2J.part" in result.stdout.replace(
            "\\\\", "\\"
        )
    assert json.loads(clean(ws, "--confirm", "--json").stdout)["deleted"]
    assert not os.listdir(ws.downloads_dir)
