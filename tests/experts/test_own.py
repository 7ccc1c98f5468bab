"""Adding and removing the user's own experts in gladius.toml keeps everything else."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.experts.own import add_expert, candidate, remove_expert
from engine.experts.registry import load_experts

BEFORE = """# my settings
[experts.qwen]  # stronger
weight = 3.0

[experts.old]
repo = "me/old"   # keep me

[other]
key = "value"
"""


@pytest.fixture
def current_folder(ws, monkeypatch, tmp_path):
    """The current folder is not the root."""
    monkeypatch.chdir(tmp_path)
    ws.user_config.write_text(BEFORE)
    return tmp_path


def add(ws, name: str, target: str, **options):
    spec, table = candidate(ws, name, target, **options)
    add_expert(ws, name, table)
    assert load_experts(ws)[name] == spec, "the candidate equals the registered expert"
    return spec


def test_a_hub_id_a_folder_and_a_file_are_registered_and_the_rest_is_kept(ws, current_folder):
    (current_folder / "mine").mkdir()
    (current_folder / "x.gguf").write_bytes(b"GGUF")
    (ws.root / "inside").mkdir()
    assert add(ws, "hub", "org/model", weight=2, capabilities=["math", "math"]).source == "hub"
    assert add(ws, "folder", "mine").repo == str(current_folder / "mine")
    assert add(ws, "file", "./x.gguf", title="File").source == "gguf"
    assert add(ws, "inside", str(ws.root / "inside")).source == "folder"
    text = ws.user_config.read_text()
    added = text.splitlines()
    for line in BEFORE.splitlines():  # all lines, in order
        del added[: added.index(line) + 1]
    assert "\n\n[other]" in text
    assert 'repo = "./inside"' in text, "relative, so that the root can be moved"
    experts = load_experts(ws)
    assert experts["hub"].capabilities == ("math",) and experts["file"].title == "File"
    assert experts["qwen"].weight == 3.0


def test_a_hub_id_wins_over_a_folder_of_that_name_in_the_root(ws, current_folder):
    (ws.root / "org" / "model").mkdir(parents=True)
    assert add(ws, "hub", "org/model").source == "hub"


def test_removing_an_added_expert_restores_the_file(ws, current_folder):
    add(ws, "hub", "org/model")
    (ws.experts_dir / "hub").mkdir()
    assert "its files are kept in" in remove_expert(ws, "hub")
    assert ws.user_config.read_text().rstrip() == BEFORE.rstrip()
    assert "has its built-in settings again" in remove_expert(ws, "qwen")
    assert load_experts(ws)["qwen"].weight == 1.5
    remove_expert(ws, "old")
    assert ws.user_config.read_text().split() == ["#", "my", "settings", *BEFORE.split()[-4:]]


def test_the_first_expert_is_appended_to_the_file(ws, current_folder):
    ws.user_config.write_text('# mine\n[other]\nkey = "value"\n')
    add(ws, "hub", "org/model")
    add(ws, "more", "org/more")
    assert ws.user_config.read_text() == (
        '# mine\n[other]\nkey = "value"\n\n[experts.hub]\nrepo = "org/model"\nsource = "hub"\n\n'
        '[experts.more]\nrepo = "org/more"\nsource = "hub"\n'
    )
    remove_expert(ws, "hub")
    remove_expert(ws, "more")
    assert ws.user_config.read_text() == '# mine\n[other]\nkey = "value"\n'


def test_a_missing_file_is_created_and_left_empty_after_removal(ws, current_folder):
    ws.user_config.unlink()
    add(ws, "hub", "org/model")
    assert remove_expert(ws, "hub") == "removed hub"
    assert ws.user_config.read_text() == ""


@pytest.mark.parametrize(
    ("name", "target", "options", "message"),
    [
        ("qwen", "org/model", {}, "is the name of a built-in expert; choose another name"),
        ("old", "org/model", {}, "models remove old"),
        ("new", "./nothing", {}, "doesn't exist"),
        ("new", "nothing.gguf", {}, "doesn't exist"),
        ("new", "gladius.bin", {}, "neither a folder nor a .gguf file"),
        ("new", "a b", {}, "is not a folder, a .gguf file or a Hub id"),
        ("new", "a/b/c", {}, "or a Hub id"),
        ("../new", "org/model", {}, "is not a valid expert name"),
        ("new", "org/model", {"weight": 0}, "0 is not a number over 0"),
        ("new", "org/model", {"weight": float("nan")}, "is not a number"),
        ("new", "org/model", {"capabilities": ["maths"]}, "did you mean 'math'?"),
        ("new", "org/model", {"revision": "../main"}, "is not a branch, tag or commit"),
    ],
)
def test_an_invalid_candidate_is_one_line_and_nothing_is_written(
    ws, current_folder, name, target, options, message
):
    (current_folder / "gladius.bin").write_bytes(b"x")
    with pytest.raises(UsageError) as raised:
        candidate(ws, name, target, **options)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert ws.user_config.read_text() == BEFORE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("phi", "is a built-in expert and can't be removed"),
        ("olt", "did you mean 'old'?"),
    ],
)
def test_removing_an_unknown_or_built_in_expert_is_an_error(ws, current_folder, name, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        remove_expert(ws, name)


def test_a_config_file_that_is_a_link_is_not_replaced(ws, current_folder):
    elsewhere = current_folder / "dotfiles.toml"
    ws.user_config.rename(elsewhere)
    ws.user_config.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a symbolic link; edit the file"):
        remove_expert(ws, "old")
    assert elsewhere.read_text() == BEFORE
