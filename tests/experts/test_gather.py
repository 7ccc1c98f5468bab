"""The download job against a Hub of our own: what it fetches, survives, and refuses."""

from __future__ import annotations

import json

from hub_server import Fault


def test_only_safetensors_and_plain_data_are_fetched_verified_and_published(
    hub, repo, ws, download
):
    link = download()
    assert link.ended.status == "completed", link.ended
    folder = ws.experts_dir / "x"
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert names == wanted | {"manifest.json"}
    for name in wanted:
        assert (folder / name).read_bytes() == repo.files[name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["revision"] == repo.commit
    assert manifest["files"]["model.safetensors"]["sha256"] == repo.hash("model.safetensors")
    assert not (ws.downloads_dir / "x").exists()


def test_a_cut_connection_is_resumed_by_range(hub, repo, ws, download):
    hub.faults = [Fault(path="safetensors", cut_after=n, times=1) for n in (100_000, 500_000, 7)]
    link = download()
    assert link.ended.status == "completed", link.ended
    assert (ws.experts_dir / "x" / "model.safetensors").read_bytes() == repo.files[
        "model.safetensors"
    ]
    print(link.lines)
    for a in hub.file_requests():
        print(a[1], a[2].get("Range"), a[2].get("If-Range"))
