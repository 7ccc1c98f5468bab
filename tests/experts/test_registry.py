"""The registered experts and their state on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import UsageError
from engine.experts import install
from engine.experts.registry import (
    CAPABILITIES,
    Manifest,
    ManifestFile,
    expert_path,
    expert_status,
    load_experts,
)
from engine.workspace import Workspace, write_json


@pytest.fixture
def ws(tmp_path) -> Workspace:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    return workspace


def safetensors(data_bytes: int, name: str = "w") -> bytes:
    """A valid safetensors file with one tensor of `data_bytes` bytes."""
    entry = {name: {"dtype": "U8", "shape": [data_bytes], "data_offsets": [0, data_bytes]}}
    header = json.dumps(entry).encode()
    return len(header).to_bytes(8, "little") + header + bytes(data_bytes)


def fill(folder: Path, **files: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data)


def user_toml(ws: Workspace, text: str) -> None:
    ws.user_config.write_text(text)


def test_the_required_experts_come_first_with_their_documented_weights(ws):
    experts = load_experts(ws)
    assert list(experts) == ["qwen", "llama", "phi", "tinyllama", "gemma", "smollm2"]
    weights = [experts[name].weight for name in ("qwen", "llama", "phi", "tinyllama")]
    assert weights == [1.5, 1.3, 1.2, 1.0]
    assert [e.name for e in experts.values() if e.required] == list(experts)[:4]
    assert [e.name for e in experts.values() if e.gated] == ["llama", "gemma"]
    four = list(experts.values())[:4]
    assert sorted(c for e in four for c in e.capabilities) == sorted(CAPABILITIES)
    assert experts["phi"].chat == "phi" and not experts["phi"].trust_end
    assert all(e.end_tokens and e.license and e.parameters for e in experts.values())


def test_a_user_adds_a_hub_id_a_folder_and_a_gguf_file(ws):
    user_toml(
        ws,
        '[experts.mine]\nrepo = "me/model"\n'
        '[experts.local]\nrepo = "./local"\nweight = 2\ncapabilities = ["math"]\n'
        '[experts.file]\nrepo = "models/x.gguf"\n',
    )
    experts = load_experts(ws)
    assert list(experts)[-3:] == ["mine", "local", "file"]
    assert [experts[n].source for n in ("mine", "local", "file")] == ["hub", "folder", "gguf"]
    assert expert_path(ws, experts["mine"]) == ws.experts_dir / "mine"
    assert expert_path(ws, experts["local"]) == ws.root / "local"
    assert expert_path(ws, experts["file"]) == ws.root / "models/x.gguf"
    assert experts["local"].weight == 2.0 and experts["local"].capabilities == ("math",)
    assert experts["mine"].capabilities == CAPABILITIES and experts["mine"].title == "mine"


def test_a_user_changes_single_fields_of_a_built_in_expert(ws):
    before = load_experts(ws)["qwen"]
    user_toml(ws, '[experts.qwen]\nweight = 3.0\nrevision = "abc"\n')
    after = load_experts(ws)["qwen"]
    assert (after.weight, after.revision) == (3.0, "abc")
    assert (after.repo, after.end_tokens) == (before.repo, before.end_tokens)


def test_all_problems_of_the_users_file_are_reported_at_once(ws):
    user_toml(
        ws,
        '[experts.qwen]\nwieght = 1\n[experts.new]\nweight = 1\n[experts.other]\nrepo = "a/b"\n'
        'weight = -1\ncapabilities = ["maths"]\n[experts."../x"]\nrepo = "a/b"\n'
        "[experts.odd]\nrepo = 'a/b'\ncapabilities = ['maths']\n",
    )
    with pytest.raises(UsageError) as raised:
        load_experts(ws)
    text = str(raised.value)
    assert text.startswith(f"{ws.user_config}: 6 problems\n")
    for part in (
        "experts.qwen.wieght: unknown field; did you mean 'weight'?",
        "experts.new.repo: missing",
        "experts.other.weight: -1 is not a number over 0",
        "experts.odd.capabilities: 'maths' is unknown; did you mean 'math'?",
        "experts.../x: '../x' is not a valid expert name",
    ):
        assert part in text


@pytest.mark.parametrize("text", ["[experts\n", "experts = 3", "[experts]\nmine = 3"])
def test_an_invalid_users_file_is_named(ws, text):
    user_toml(ws, text)
    with pytest.raises(UsageError, match=r"gladius\.toml"):
        load_experts(ws)


def test_an_expert_goes_from_missing_to_partial_to_ready(ws):
    spec = load_experts(ws)["qwen"]
    assert expert_status(ws, spec).state == "missing"
    fill(ws.downloads_dir / "qwen", part=bytes(10))
    status = expert_status(ws, spec)
    assert (status.state, status.present_bytes) == ("partial", 10)
    folder = ws.experts_dir / "qwen"
    fill(folder, config__json=b"{}", tokenizer__json=b"{}")
    assert expert_status(ws, spec).detail == "model.safetensors is missing"
    fill(folder, model__safetensors=safetensors(64)[:-1])
    status = expert_status(ws, spec)
    assert status.state == "partial" and "bytes" in status.detail
    fill(folder, model__safetensors=safetensors(64))
    status = expert_status(ws, spec)
    assert status.state == "partial" and "models --verify" in status.detail
    install.write_manifest(folder, spec)
    assert expert_status(ws, spec).state == "ready"


def test_every_shard_of_the_index_must_be_complete(ws):
    spec = load_experts(ws)["phi"]
    folder = ws.experts_dir / "phi"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    fill(folder, config__json=b"{}", tokenizer__json=b"{}")
    fill(folder, **{"model.safetensors.index.json": json.dumps(index).encode()})
    fill(folder, **{"model-1.safetensors": safetensors(8, "x")})
    assert "model-1.safetensors lacks the tensor a" in expert_status(ws, spec).detail
    fill(folder, **{"model-1.safetensors": safetensors(8, "a")})
    assert expert_status(ws, spec).detail == "model-2.safetensors is missing"
    fill(folder, **{"model-2.safetensors": b"not one"})
    assert expert_status(ws, spec).state == "partial"
    fill(folder, **{"model-2.safetensors": safetensors(8, "b")})
    assert "not verified yet" in expert_status(ws, spec).detail


def test_a_manifest_without_times_is_compared_by_size(ws):
    spec = load_experts(ws)["smollm2"]
    folder = ws.experts_dir / "smollm2"
    fill(folder, weights=bytes(100))
    files = {"weights": ManifestFile(size=100, sha256="0" * 64)}
    write_json(folder / "manifest.json", Manifest(files=files))
    status = expert_status(ws, spec)
    assert (status.state, status.expected_bytes) == ("ready", 100)
    fill(folder, weights=bytes(99))
    assert expert_status(ws, spec).state == "partial"


def test_a_users_gguf_file_is_ready_when_its_format_is_valid(ws):
    user_toml(ws, '[experts.file]\nrepo = "x.gguf"\n')
    spec = load_experts(ws)["file"]
    assert expert_status(ws, spec).state == "missing"
    (ws.root / "x.gguf").write_bytes(b"nope")
    assert expert_status(ws, spec).state == "partial"
    (ws.root / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert expert_status(ws, spec).state == "ready"
