"""The user's own experts in gladius.toml: added, removed, and all else left as it is."""

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
def here(ws, monkeypatch, tmp_path):
    """The current folder is not the root."""
    monkeypatch.chdir(tmp_path)
    ws.user_config.write_text(BEFORE)
    return tmp_path


def add(ws, name: str, target: str, **options):
    spec, table = candidate(ws, name, target, **options)
    add_expert(ws, name, table)
    assert load_experts(ws)[name] == spec, "what was checked is what is registered"
    return spec


def test_a_hub_id_a_folder_and_a_file_are_registered_and_the_rest_stays(ws, here):
    (here / "mine").mkdir()
    (here / "x.gguf").write_bytes(b"GGUF")
    (ws.root / "inside").mkdir()
    assert add(ws, "hub", "org/model", weight=2, capabilities=["math", "math"]).source == "hub"
    assert add(ws, "folder", "mine").repo == str(here / "mine")
    assert add(ws, "file", "./x.gguf", title="File").source == "gguf"
    assert add(ws, "inside", str(ws.root / "inside")).source == "folder"
    text = ws.user_config.read_text()
    added = text.splitlines()
    for line in BEFORE.splitlines():  # all of it, in its order
        del added[: added.index(line) + 1]
    assert "\n\n[other]" in text
    assert 'repo = "./inside"' in text, "a root that is moved takes its own folders along"
    experts = load_experts(ws)
    assert experts["hub"].capabilities == ("math",) and experts["file"].title == "File"
    assert experts["qwen"].weight == 3.0


def test_a_hub_id_is_one_although_a_folder_of_that_name_lies_in_the_root(ws, here):
    (ws.root / "org" / "model").mkdir(parents=True)
    assert add(ws, "hub", "org/model").source == "hub"


def test_what_was_added_is_removed_without_a_trace(ws, here):
    add(ws, "hub", "org/model")
    (ws.experts_dir / "hub").mkdir()
    assert "its files stay in" in remove_expert(ws, "hub")
    assert ws.user_config.read_text().rstrip() == BEFORE.rstrip()
    assert "is as it ships again" in remove_expert(ws, "qwen")
    assert load_experts(ws)["qwen"].weight == 1.5
    remove_expert(ws, "old")
    assert ws.user_config.read_text().split() == ["#", "my", "settings", *BEFORE.split()[-4:]]


def test_the_first_expert_comes_behind_what_is_there(ws, here):
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


def test_without_a_file_one_is_made_and_left_empty_again(ws, here):
    ws.user_config.unlink()
    add(ws, "hub", "org/model")
    assert remove_expert(ws, "hub") == "removed hub"
    assert ws.user_config.read_text() == ""


@pytest.mark.parametrize(
    ("name", "target", "options", "said"),
    [
        ("qwen", "org/model", {}, "ships already; choose another name"),
        ("old", "org/model", {}, "models remove old"),
        ("new", "./nothing", {}, "doesn't exist"),
        ("new", "nothing.gguf", {}, "doesn't exist"),
        ("new", "gladius.bin", {}, "no folder and no .gguf file"),
        ("new", "a b", {}, "no folder, no .gguf file and no Hub id"),
        ("new", "a/b/c", {}, "no Hub id"),
        ("../new", "org/model", {}, "is not a valid expert name"),
        ("new", "org/model", {"weight": 0}, "0 is not a number over 0"),
        ("new", "org/model", {"weight": float("nan")}, "is not a number"),
        ("new", "org/model", {"capabilities": ["maths"]}, "did you mean 'math'?"),
        ("new", "org/model", {"revision": "../main"}, "is no branch, tag or commit"),
    ],
)
def test_what_can_be_no_expert_is_told_and_nothing_written(ws, here, name, target, options, said):
    (here / "gladius.bin").write_bytes(b"x")
    with pytest.raises(UsageError) as raised:
        candidate(ws, name, target, **options)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert ws.user_config.read_text() == BEFORE


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("phi", "ships with the program and stays"),
        ("olt", "did you mean 'old'?"),
    ],
)
def test_what_can_not_be_removed_is_told(ws, here, name, said):
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        remove_expert(ws, name)


def test_a_file_that_is_a_link_is_not_replaced(ws, here):
    elsewhere = here / "dotfiles.toml"
    ws.user_config.rename(elsewhere)
    ws.user_config.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link; edit what it leads to"):
        remove_expert(ws, "old")
    assert elsewhere.read_text() == BEFORE
