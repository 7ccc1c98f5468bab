"""The workspace: paths, confinement, durable writes, cleaning."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cleaning import clean_targets, linked_folders
from engine.errors import GladiusError, UsageError
from engine.workspace import (
    Workspace,
    append_line,
    assets_dir,
    expert_dir,
    publish_dir,
    remove_entry,
    runtime_dir,
    sha256_file,
    tree_bytes,
    write_bytes,
    write_json,
)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    return workspace


def test_root_is_the_option_else_the_variable_else_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLADIUS_ROOT", raising=False)
    assert Workspace.find().root == tmp_path
    monkeypatch.setenv("GLADIUS_ROOT", "a")
    assert Workspace.find().root == tmp_path / "a"
    assert Workspace.find("b").root == tmp_path / "b"


def test_a_root_that_is_no_path_is_a_usage_error():
    with pytest.raises(UsageError):
        Workspace.find("a\0b")


def test_create_makes_all_folders_below_the_root(ws):
    for folder in ("cache", "models", "downloads", "experts_cache", "checkpoints", "logs"):
        assert (ws.root / "tmp" / folder).is_dir()
    assert ws.model_dir.parent.is_dir()


def test_create_says_in_a_line_that_a_root_cant_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(GladiusError, match="--root") as raised:
        Workspace.find(tmp_path / "file").create()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "a\0b", "", "..", ".hidden", "a" * 200])
def test_an_experts_name_cant_leave_its_folder(ws, name):
    with pytest.raises(UsageError):
        expert_dir(ws, name)


def test_an_experts_folder_is_named_for_it(ws):
    assert expert_dir(ws, "qwen-2.5") == ws.experts_dir / "qwen-2.5"


def test_the_runtime_folder_is_private_short_and_one_for_each_root(ws, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("long" * 30)))
    folder = runtime_dir(ws.root)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(os.fsencode(folder / "download.sock")) < 108
    assert runtime_dir(tmp_path / "other") != folder


def test_a_runtime_folder_that_is_a_link_is_refused(ws, tmp_path, monkeypatch):
    runtime = Path("/tmp") / f"gladius-test-{os.getpid()}"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    try:
        (runtime / f"gladius-{os.getuid()}").symlink_to(tmp_path)
        with pytest.raises(GladiusError, match="another user"):
            _ = runtime_dir(ws.root)
    finally:
        remove_entry(runtime)


def test_assets_hold_the_presets_and_the_experts():
    assert (assets_dir() / "experts.toml").is_file()
    assert (assets_dir() / "presets" / "nano.toml").is_file()


def test_a_write_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})
    write_json(path, {"step": 2})
    assert path.read_bytes() == b'{\n  "step": 2\n}\n'
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_write_that_fails_keeps_the_former_content(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"former")
    script = (
        "import resource, signal; from pathlib import Path;"
        "from engine.workspace import write_bytes;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        f"write_bytes(Path({str(path)!r}), bytes(100_000))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert result.returncode == 1 and b"OSError" in result.stderr
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["file"]


def test_a_torn_last_line_is_cut_off_before_the_next_is_appended(tmp_path):
    path = tmp_path / "journal"
    append_line(path, b"one")
    with path.open("ab") as file:
        file.write(b"to" + b"r" * 200_000)
    append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_line_that_cant_be_written_whole_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "journal"
    append_line(path, b"one")
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            append_line(path, b"x" * 5000)
        except OSError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert path.read_bytes() == b"one\n"


def test_a_folder_is_published_whole_and_never_over_another(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text(name)
    publish_dir(tmp_path / "a", tmp_path / "final")
    with pytest.raises(FileExistsError):
        publish_dir(tmp_path / "b", tmp_path / "final")
    assert (tmp_path / "final" / "deep" / "file").read_text() == "a"
    assert not (tmp_path / "a").exists() and (tmp_path / "b").exists()


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_cleaning_goes_for_downloads_partials_and_logs_only(ws):
    for path in (
        ws.downloads_dir / "qwen" / "part",
        ws.checkpoints_dir / ".tmp-step-1" / "model",
        ws.checkpoints_dir / "step-000000001" / "model",
        ws.log_file(),
        ws.history_file,
        ws.experts_dir / "qwen" / "config.json",
        ws.model_dir / "config.json",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    (ws.downloads_dir / ".gitkeep").touch()
    targets = clean_targets(ws)
    assert [path.relative_to(ws.tmp).as_posix() for path, _ in targets] == [
        "downloads/qwen",
        "checkpoints/.tmp-step-1",
        f"logs/{ws.log_file().name}",
    ]
    assert [size for _, size in targets] == [5, 5, 5]
    for path, _ in targets:
        remove_entry(path)
    assert clean_targets(ws) == []
    assert (ws.checkpoints_dir / "step-000000001" / "model").exists() and ws.history_file.exists()


def test_cleaning_never_follows_a_link(ws, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("kept")
    (ws.downloads_dir / "inside").mkdir()
    (ws.downloads_dir / "inside" / "link").symlink_to(outside)
    (ws.downloads_dir / "link").symlink_to(outside)
    for path, _ in clean_targets(ws):
        remove_entry(path)
    assert (outside / "precious").read_text() == "kept"
    assert os.listdir(ws.downloads_dir) == []


def test_cleaning_refuses_a_tmp_that_is_a_link(ws, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    ws.tmp.rename(outside / "moved")
    ws.tmp.symlink_to(outside / "moved")
    with pytest.raises(UsageError, match="link"):
        clean_targets(ws)


def test_cleaning_passes_over_a_folder_that_is_a_link_and_names_it(ws, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (ws.downloads_dir / "part").write_text("12345")
    ws.downloads_dir.rename(outside / "moved")
    ws.downloads_dir.symlink_to(outside / "moved")
    ws.log_file().write_text("a line")
    assert clean_targets(ws) == [(ws.log_file(), 6)]
    assert linked_folders(ws) == [ws.downloads_dir]
    assert linked_folders(ws, ["logs"]) == []


def test_partials_are_found_wherever_the_engine_writes_them(ws):
    here = [
        ws.model_dir.parent / ".tmp-gladius_primary" / "model.safetensors",
        ws.experts_cache_dir / "qwen" / "ab12" / "train" / ".tmp-77-shard-00000.safetensors",
        ws.experts_cache_dir / "projection-ab12.tmp4711",
        ws.checkpoints_dir / ".training_state.json.12-34.tmp",
        ws.checkpoints_dir / ".probe-12",
    ]
    kept = [
        ws.experts_cache_dir / "qwen" / "ab12" / "train" / "shard-00000.safetensors",
        ws.experts_cache_dir / "projection-ab12.safetensors",
        ws.model_dir / "model.safetensors",
    ]
    for path in (*here, *kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for path, _ in clean_targets(ws, ["partials"]):
        remove_entry(path)
    assert not any(path.exists() for path in here) and all(path.exists() for path in kept)


def test_the_size_of_a_tree_counts_a_link_as_a_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(1000))
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    assert 1000 <= tree_bytes(tmp_path / "a") < 2000
