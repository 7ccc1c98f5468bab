"""Untrusted names (files, repositories, revisions, experts) never lead out of their folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.errors import GladiusError, UsageError
from engine.experts import folder as folders
from engine.experts.hub import chosen_files, is_downloaded
from engine.experts.registry import ExpertSpec, expert_path, is_hub_id, load_experts
from engine.workspace import Workspace
from tests.support.downloading import model_files, safetensors

SPEC = ExpertSpec(name="x", title="X", source="hub", repo="me/x")
PIECES = [*r"./\:~-_ %?#ab*$", "\0", "\n", "\r", "\t", "..", "../", "\u2024", "\u202e", "é"]
NASTY = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join)
NAMES = (
    NASTY
    | st.text(min_size=1, max_size=30)
    | st.builds(str.__add__, NASTY, st.just("/config.json"))
)
SUFFIXED = st.builds(str.__add__, NAMES, st.sampled_from([".safetensors", ".json", "", ".bin"]))


@given(SUFFIXED)
@example("../x.safetensors")
@example("/etc/x.safetensors")
@example("a/../../x.safetensors")
@example("a\\x.safetensors")
@example(".safetensors")
@example("..safetensors")
@example("model.safetensors\n")
@example("original/params.json")
def test_every_downloaded_file_is_directly_in_its_folder(name: str):
    try:
        downloaded = is_downloaded(name)
    except UsageError:
        return
    folder = Path("/root/of/it")
    if downloaded:
        path = folder / name
        assert path.parent == folder and path.resolve().parent == folder.resolve()
        assert path.name == name and not name.startswith(".") and name.isascii()
        assert path.suffix not in folders.PICKLES and path.suffix != ".py"


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\x.json", "a\0"])
def test_a_file_name_that_leaves_the_folder_is_rejected(name: str):
    with pytest.raises(UsageError, match="no safe file name"):
        is_downloaded(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("chat_template.jinja", True),
        ("tokenizer.model", True),
        ("merges.txt", True),
        ("pytorch_model.bin", False),
        ("original/consolidated.00.pth", False),
        ("original/params.json", False),
        ("onnx/model.safetensors", False),
        ("modeling_custom.py", False),
        ("README.md", False),
    ],
)
def test_which_files_of_a_repository_are_downloaded(name: str, expected: bool):
    assert is_downloaded(name) is expected


def test_only_the_weights_that_transformers_loads_are_chosen():
    base = ["config.json", "tokenizer.json", "adapter_model.safetensors"]
    one = [*base, "model.safetensors", "consolidated.safetensors"]
    assert chosen_files(SPEC, one)[-1] == "model.safetensors" and len(chosen_files(SPEC, one)) == 3
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    several = [*base, folders.INDEX, *shards, "consolidated.safetensors"]
    assert chosen_files(SPEC, several)[-2:] == shards
    for missing in ("config.json", "tokenizer.json"):
        with pytest.raises(GladiusError, match=f"has no {missing}"):
            chosen_files(SPEC, [name for name in one if name != missing])


@given(NAMES)
@example("a/b/c")
@example("../b")
@example("a/..")
@example("a--b/c")
def test_a_hub_id_contains_no_path_out_of_its_folder(text: str):
    if is_hub_id(text):
        parts = text.split("/")
        assert len(parts) <= 2 and all(parts)
        assert not any(part.startswith(".") or ".." in part for part in parts)
        assert text.isascii() and text.isprintable() and " " not in text
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=NAMES, repo=NAMES, revision=NAMES)
@example(name="../x", repo="me/x", revision="main")
@example(name="x", repo="me/x", revision="../main")
@example(name="x", repo="me/x", revision="refs/pr/1")
def test_an_expert_of_any_name_is_below_the_root_or_rejected(tmp_path, name, repo, revision):
    ws = Workspace.find(tmp_path)
    table = {"experts": {name: {"repo": repo, "source": "hub", "revision": revision}}}
    import tomlkit

    try:
        ws.user_config.write_text(tomlkit.dumps(table))
    except (UnicodeEncodeError, ValueError):
        return  # not representable in TOML
    try:
        experts = load_experts(ws)
    except UsageError as error:
        assert "\0" not in str(error)
        return
    spec = experts[name]
    path = expert_path(ws, spec)
    assert path.parent == ws.experts_dir and path.resolve().is_relative_to(ws.root)
    assert ".." not in spec.revision and is_hub_id(spec.repo)


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(name=SUFFIXED)
@example(name="../outside.safetensors")
@example(name="../../models/y/config.json")
@example(name="model-00001-of-00001.safetensors/../../x")
def test_a_download_writes_only_to_its_own_folders(hub, ws, download, tmp_path, name):
    for folder in (ws.experts_dir, ws.downloads_dir):
        shutil.rmtree(folder)
    try:
        json.dumps(name).encode()
        hub.add("me/x", {**model_files(100), name: safetensors(10)})
    except UnicodeEncodeError:
        return
    before = _tree(tmp_path)
    link = download()
    new = {path for path in _tree(tmp_path) - before if path.is_file()}
    allowed = ws.experts_dir / "x"
    assert all(path.parent == allowed for path in new), new
    assert (link.ended.status == "completed") == bool(new)
    names = {path.name for path in new}
    assert names <= {*model_files(1), "manifest.json"}


def _tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("location", ["downloads", "files", "part", "installed"])
def test_links_are_not_written_through(hub, repo, ws, download, tmp_path, location):
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = outside / "kept"
    kept.write_bytes(b"kept")
    downloads = ws.downloads_dir / "x"
    part = downloads / f"{repo.hash('model.safetensors')}.part"
    if location == "downloads":
        downloads.symlink_to(outside)
    elif location == "files":
        downloads.mkdir()
        (downloads / "files").symlink_to(outside)
    elif location == "part":
        downloads.mkdir()
        part.symlink_to(kept)
    else:
        (ws.experts_dir / "x").symlink_to(outside)
    link = download()
    assert link.ended.exit_code == 1 and "is a symbolic link; remove it" in link.ended.reason
    assert location == "part" or not hub.sent, "reported before the first byte"
    assert list(outside.iterdir()) == [kept] and kept.read_bytes() == b"kept"


def test_a_link_in_place_of_a_file_is_replaced_not_followed(hub, repo, ws, download, tmp_path):
    kept = tmp_path / "kept"
    kept.write_bytes(repo.files["config.json"])
    files = ws.downloads_dir / "x" / "files"
    files.mkdir(parents=True)
    (files / "config.json").symlink_to(kept)
    assert download().ended.status == "completed"
    config = ws.experts_dir / "x" / "config.json"
    assert not config.is_symlink() and config.stat().st_ino != kept.stat().st_ino
