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

from engine.errors import LockedError
from engine.events import Job
from engine.run.lock import hold_lock
from engine.workspace import CLEANABLE, Workspace
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
    (ws.root / "tmp/logs/link.log").symlink_to(moved)
    before = digest(moved)
    result = clean(ws, *CLEANABLE, "--confirm")
    assert digest(moved) == before
    if linked == "tmp":
        assert result.returncode == 2 and "is a link" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        assert not (ws.downloads_dir / "qwen").exists()
        assert not os.path.lexists(ws.root / "tmp/logs/link.log")
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
