"""Verification of a local expert: every byte, offline, with the result stored."""

from __future__ import annotations

import json
import os
import sys

import msgspec
import pytest

from engine.distill.teacher.loading import expert_digest
from engine.events import JobRequest, Progress, Stop
from engine.experts import folder as folders
from engine.experts.fetch import DownloadRequest, main
from engine.experts.registry import expert_status, load_experts, read_manifest
from engine.experts.verify import hash_files, is_ready, verify_hashes
from engine.run.job import JobContext
from tests.support.downloading import RecordingLink, model_files, safetensors

WEIGHTS = "model.safetensors"


@pytest.fixture
def verify(ws):
    """Runs the verification in this process; returns the recorded events."""

    def run(*names: str, link: RecordingLink | None = None) -> RecordingLink:
        link = link or RecordingLink()
        config = DownloadRequest(names=list(names or ("x",)), action="verify")
        request = JobRequest(
            job="download",
            root=str(ws.root),
            run_id="r",
            attempt=1,
            config=msgspec.json.encode(config),
        )
        main(JobContext(link), request)
        return link

    return run


@pytest.fixture
def here(hub, repo, ws, download):
    """The folder of `x`, downloaded; the Hub is closed."""
    assert download().ended.status == "completed"
    hub.close()
    return ws.experts_dir / "x"


def status(ws):
    return expert_status(ws, load_experts(ws)["x"])


def flip(path, position: int = -1) -> None:
    """Flip one bit; size and times stay the same."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)


def test_an_intact_expert_is_reported_with_progress_without_network(here, ws, verify):
    link = verify()
    assert link.ended.status == "completed" and "x: every file is intact" in link.lines
    events = [e for e in link.of(Progress) if e.task == "verify:x"]
    assert events[-1].finished and events[-1].done == events[-1].total > 3_000_000


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_one_flipped_bit_is_found_and_stored_with_the_remedy(
    here, ws, verify, hub, download, monkeypatch, name
):
    flip(here / name)
    assert status(ws).state == "ready", "size and time have not changed"
    link = verify()
    assert link.ended.exit_code == 1
    assert name in link.ended.reason and "gladius_train download x" in link.ended.reason
    after = status(ws)
    assert after.state == "partial" and name in after.detail


def test_only_the_damaged_file_is_downloaded_again(hub, repo, ws, download, verify):
    download()
    flip(ws.experts_dir / "x" / WEIGHTS)
    verify()
    before = hub.sent
    assert download().ended.status == "completed"
    assert hub.sent - before == repo.size(WEIGHTS)
    assert status(ws).state == "ready"
    assert (ws.experts_dir / "x" / WEIGHTS).read_bytes() == repo.files[WEIGHTS]


def test_verification_accepts_files_with_only_a_changed_time(here, ws, verify):
    os.utime(here / WEIGHTS)
    assert status(ws).state == "partial" and "was changed since" in status(ws).detail
    assert verify().ended.status == "completed"
    assert status(ws).state == "ready"


def test_a_model_copied_by_hand_is_ready_after_verification(hub, repo, ws, verify, download):
    folder = ws.experts_dir / "x"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS):
        (folder / name).write_bytes(repo.files[name])
    assert status(ws).state == "partial" and "models --verify" in status(ws).detail
    first, second = verify(), verify()
    assert "there were no hashes to compare; they are stored now" in first.lines[-1]
    assert second.lines == ["x: every file is intact"]
    assert status(ws).state == "ready" and not hub.requests
    (folder / "manifest.json").unlink()
    assert download().ended.status == "completed"
    assert hub.sent == 0, "the files have the Hub's hashes"
    assert json.loads((folder / "manifest.json").read_text())["revision"] == repo.commit


def test_a_stopped_verification_changes_nothing(here, ws, verify):
    before = (here / "manifest.json").read_bytes()
    assert verify(link=RecordingLink(Stop())).ended.status == "stopped"
    assert (here / "manifest.json").read_bytes() == before and status(ws).state == "ready"


def test_a_users_folder_is_verified_by_its_format_and_never_written_to(ws, verify, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        (own / name).write_bytes(model_files(20_000)[name])
    ws.user_config.write_text(f'[experts.mine]\nrepo = "{own}"\n')
    assert verify("mine").lines[-1].endswith("there were no hashes to compare")
    assert sorted(p.name for p in own.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]
    (own / "tokenizer.json").write_text("{}")
    link = verify("mine")
    assert link.ended.exit_code == 1 and "is not a readable tokenizer" in link.ended.reason


def test_the_state_is_found_without_opening_weights(here, ws):
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    try:
        assert status(ws).state == "ready"
    finally:
        watching = False
    assert any(path.endswith("manifest.json") for path in opened)
    assert not any(path.endswith(".safetensors") for path in opened)


# The format of a folder


def fill(folder, **changes: bytes | None):
    files = {"config.json": b"{}", "tokenizer.json": b"{}", WEIGHTS: safetensors(64)}
    for name, data in {**files, **changes}.items():
        if data is not None:
            (folder / name).write_bytes(data)
    return folders.find_problem(folder)


def header(**entry: object) -> bytes:
    data = json.dumps(
        {"w": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8], **entry}}
    ).encode()
    return len(data).to_bytes(8, "little") + data + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model.safetensors is missing"),
        (b"", "is not a safetensors file"),
        (b"\x80\x04\x95" + b"x" * 100, "is a pickle"),
        (b"PK\x03\x04" + b"x" * 100, "is a pickle"),
        ((1 << 40).to_bytes(8, "little"), "is not a safetensors file"),
        ((50).to_bytes(8, "little") + b"{}", "is truncated"),
        ((2).to_bytes(8, "little") + b"[]", "is not a safetensors file"),
        (b"\x02" + bytes(7) + b"{x", "is not a safetensors file"),
        (header(data_offsets=[0, 7]), "does not match its data"),
        (header(data_offsets=[1, 9]), "does not match its data"),
        (header(data_offsets=[0, -8]), "does not match its data"),
        (header(shape=[-8]), "is not a safetensors file"),
        (header(shape="8"), "is not a safetensors file"),
        (header(data_offsets=[0]), "is not a safetensors file"),
        (header()[:-1], "bytes"),
        (header() + b"x", "bytes"),
        (b"[" * 50_000, "is not a safetensors file"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "is not a safetensors file"),
    ],
)
def test_damaged_weights_are_named(tmp_path, content, message):
    problem = fill(tmp_path, **{WEIGHTS: content})
    assert problem is not None and message in problem


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(tmp_path):
    # Its length begins with the same two bytes as a pickle.
    entry = b'{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    data = (640).to_bytes(8, "little") + entry.ljust(640) + bytes(8)
    assert data[:2] == b"\x80\x02" and fill(tmp_path, **{WEIGHTS: data}) is None


def test_an_unknown_dtype_is_accepted(tmp_path):
    assert fill(tmp_path, **{WEIGHTS: header(dtype="F3_NEW")}) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "config.json can't be read"),
        ("config.json", b"[]", "config.json can't be read"),
        ("model.safetensors.index.json", b"{}", "lists no weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "../x"}}', "outside the folder"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": 3}}', "outside the folder"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"v": "model.safetensors"}}',
            "lacks the tensor v",
        ),
        ("model.safetensors.index.json", b'{"weight_map": {"v": "a"}}', "a is missing"),
    ],
)
def test_an_invalid_config_or_index_is_named(tmp_path, name, content, message):
    problem = fill(tmp_path, **{name: content})
    assert problem is not None and message in problem


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_a_pipe_in_place_of_a_file_does_not_block(here, ws, name):
    (here / name).unlink()
    os.mkfifo(here / name)
    assert status(ws).state == "partial"


def test_a_folder_with_only_pickles_is_named(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "only safetensors are loaded" in str(fill(tmp_path, **{WEIGHTS: None}))


def test_a_copied_expert_is_verified_by_hash_when_it_is_used(here, ws):
    """Copying changes the times of all files and nothing else."""
    spec = load_experts(ws)["x"]
    manifest, before = (here / "manifest.json").read_bytes(), expert_digest(here, spec)
    for file in here.iterdir():
        os.utime(file, ns=(1, 1))
    assert status(ws).only_times_differ and status(ws).usable and status(ws).state == "partial"
    beats = []
    assert is_ready(ws, spec, lambda: beats.append(1)) and len(beats) >= 3
    assert status(ws).state == "ready"
    assert (here / "manifest.json").read_bytes() == manifest
    assert expert_digest(here, spec) == before, "its answers and targets stay usable"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json"])
def test_a_copied_expert_with_a_flipped_bit_is_not_ready(here, ws, name):
    flip(here / name)
    os.utime(here / name)
    assert status(ws).only_times_differ
    assert not is_ready(ws, load_experts(ws)["x"])
    manifest = read_manifest(here)
    assert manifest is not None and verify_hashes(here, manifest) == [name]


def test_a_file_of_another_size_or_a_missing_one_differs_from_the_manifest(here, ws):
    manifest = read_manifest(here)
    assert manifest is not None and verify_hashes(here, manifest) == []
    assert hash_files(here).keys() == manifest.files.keys()
    (here / "tokenizer.json").unlink()
    (here / "config.json").write_bytes(b"{}")
    assert sorted(verify_hashes(here, manifest)) == ["config.json", "tokenizer.json"]
    assert not status(ws).usable
