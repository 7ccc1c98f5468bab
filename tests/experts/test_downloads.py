"""The download job against a local Hub server: results, recovery and leftovers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from engine.events import Pause, Progress, Resume, RunPaused, RunResumed, Stop
from engine.experts import downloads, install, transfer
from engine.experts.registry import expert_status, load_experts
from tests.support.downloading import CONFIG, RecordingLink, big_shards, model_files, safetensors
from tests.support.hub_repo import Fault

WEIGHTS = "model.safetensors"
STORE = r"^/me/x/model"
"""Request path of the weights."""


def installed(ws, name: str = WEIGHTS) -> bytes:
    return (ws.experts_dir / "x" / name).read_bytes()


def state(ws) -> str:
    return expert_status(ws, load_experts(ws)["x"]).state


def part_of(ws, repo, name: str = WEIGHTS) -> Path:
    return ws.downloads_dir / "x" / f"{repo.hash(name)}.part"


def weights_requests(hub) -> list[dict[str, str]]:
    return [headers for _, path, headers in hub.file_requests() if path.startswith("/me/x/model")]


def test_only_safetensors_and_plain_data_are_downloaded_verified_and_installed(
    hub, repo, ws, download
):
    link = download()
    assert link.ended.status == "completed", link.ended
    folder = ws.experts_dir / "x"
    expected = {"config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS}
    assert {path.name for path in folder.iterdir()} == expected | {"manifest.json"}
    for name in expected:
        assert installed(ws, name) == repo.files[name]
    manifest = json.loads(installed(ws, "manifest.json"))
    assert (manifest["revision"], manifest["source"]) == (repo.commit, "me/x")
    assert manifest["files"][WEIGHTS]["sha256"] == repo.hash(WEIGHTS)
    assert {file["size"] for file in manifest["files"].values()} == {repo.size(n) for n in expected}
    assert state(ws) == "ready"
    assert not (ws.downloads_dir / "x").exists()
    assert all(repo.commit in path for _, path, _ in hub.file_requests() if "resolve" in path)


def test_progress_of_each_file_and_the_total_has_bytes_rate_and_remaining_time(
    hub, repo, ws, download
):
    hub.faults = [Fault(path=STORE, rate=2_000_000)]
    events = download().of(Progress)
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
    assert {e.task for e in events} == {"download:x", *(f"download:x:{name}" for name in names)}
    for name in names:
        of_file = [e for e in events if e.task == f"download:x:{name}"]
        assert [e.finished for e in of_file].count(True) == 1 and of_file[-1].finished
        assert of_file[-1].done == of_file[-1].total == repo.size(name)
    weights = [e for e in events if e.task == f"download:x:{WEIGHTS}"]
    assert any(e.rate and 1e6 < e.rate < 4e6 and e.eta and e.eta < 3 for e in weights)
    total = [e for e in events if e.task == "download:x"]
    assert total[-1].finished and total[-1].done >= sum(repo.size(name) for name in names)
    done = [e.done for e in total[:-1]]
    assert done == sorted(done) and any(0 < n < 3_000_000 for n in done)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(path=STORE, cut_after=1_500_000), "the connection was lost"),
        (Fault(path=STORE, short_by=1_000_000), "the connection ended early"),
        (Fault(path=STORE, status=503), "the Hub answers 503"),
        (Fault(path=STORE, status=403), "the Hub's storage of large files answers 403"),
        (
            Fault(path=STORE, status=429, headers={"Retry-After": "0"}),
            "the Hub's rate limit is reached (429)",
        ),
        (Fault(path=STORE, hang=1.0), "no answer in time"),
        (Fault(path=STORE, wrong_at=2_000_000), "its sha256 is not the Hub's"),
        (Fault(path="resolve.*config", status=500), "the Hub answers 500"),
        (Fault(path="resolve.*/config", wrong_at=3), "its git id is not the Hub's"),
        (Fault(path="api/models", status=502), "the Hub answers 502"),
        (Fault(path="api/models", status=429, headers={"RateLimit": '"api";r=0;t=0'}), "(429)"),
    ],
)
def test_a_failure_is_retried_and_reported(hub, repo, ws, download, monkeypatch, fault, message):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults = [fault]
    link = download()
    assert link.ended.status == "completed", link.ended
    assert fault.times == 0
    assert any(message in line for line in link.lines), link.lines
    assert installed(ws) == repo.files[WEIGHTS]


def test_an_interrupted_download_resumes_by_range_without_repeated_bytes(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, cut_after=n) for n in (1_000_000, 500_000, 7)]
    assert download().ended.status == "completed"
    requests = weights_requests(hub)
    assert [r.get("Range") for r in requests] == [
        None, "bytes=1000000-", "bytes=1500000-", "bytes=1500007-",
    ]  # fmt: skip
    assert {r.get("If-Range") for r in requests[1:]} == {requests[1]["If-Range"]}
    assert requests[1]["If-Range"].startswith('"store-')
    assert hub.sent == sum(repo.size(path.name) for path in (ws.experts_dir / "x").iterdir()
                           if path.name != "manifest.json")  # fmt: skip


@pytest.mark.parametrize("fault", [{"no_ranges": True}, {"shifted": True}, {"gzip": True}])
def test_a_response_that_is_not_the_requested_range_does_no_harm(hub, repo, ws, download, fault):
    hub.faults = [Fault(path=STORE, cut_after=1_000_000), Fault(path=STORE, **fault)]
    assert download().ended.status == "completed"
    assert installed(ws) == repo.files[WEIGHTS]


@pytest.mark.parametrize(
    "kind", ["other etag", "wrong bytes", "too long", "complete", "complete, wrong"]
)
def test_a_part_file_that_is_not_a_prefix_of_the_file_is_discarded(hub, repo, ws, download, kind):
    part = part_of(ws, repo)
    part.parent.mkdir(parents=True)
    content = repo.files[WEIGHTS]
    part.write_bytes(
        {
            "other etag": b"x" * 1000,
            "wrong bytes": b"x" * 1000,
            "too long": content + b"x",
            "complete": content,
            "complete, wrong": b"x" * len(content),
        }[kind]
    )
    if kind == "other etag":
        part.with_suffix(".etag").write_text('"an-older-one"')
    assert download().ended.status == "completed"
    assert installed(ws) == content
    assert len(weights_requests(hub)) == (
        0 if kind == "complete" else 2 if kind == "wrong bytes" else 1
    )


def test_bytes_with_a_wrong_hash_are_never_installed(hub, repo, ws, download):
    repo.claimed[WEIGHTS] = "0" * 64
    link = download()
    assert (link.ended.status, link.ended.exit_code) == ("failed", 1)
    assert "had a wrong sha256 in 3 downloads" in link.ended.reason
    assert len(weights_requests(hub)) == 3
    assert not (ws.experts_dir / "x").exists() and state(ws) != "ready"
    assert part_of(ws, repo).stat().st_size == 0


def test_a_download_gives_up_on_a_server_that_always_disconnects_and_keeps_its_bytes(
    hub, repo, ws, download, monkeypatch
):
    monkeypatch.setattr(transfer, "MAX_TRIES", 3)
    hub.faults = [Fault(path=STORE, cut_after=1_000_000), Fault(path=STORE, cut_after=0, times=99)]
    link = download()
    assert link.ended.exit_code == 1 and "failed 3 times in a row" in link.ended.reason
    assert part_of(ws, repo).stat().st_size == 1_000_000
    hub.faults = [Fault(path=STORE, no_ranges=True, cut_after=900_000, times=99)]
    assert "failed 3 times in a row" in download().ended.reason, "repeated bytes are no progress"
    hub.faults = []
    assert download().ended.status == "completed"


def test_retry_waits_grow_with_jitter_up_to_a_bound():
    for tries, longest in ((1, 1.0), (2, 2.0), (4, 8.0), (20, 30.0)):
        waits = {transfer.retry_wait(tries, first=1.0) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_retry_after_is_respected(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    assert any("retrying in 1 s" in line for line in download().lines)
    assert time.monotonic() - began >= 1.0


def test_a_retry_after_of_hours_fails_with_the_time(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, status=429, headers={"Retry-After": "7200"})]
    assert "try again in 120 minutes" in download().ended.reason


# Commands


def test_pause_stops_the_transfer_and_resume_continues_by_range(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, rate=4_000_000, times=9)]
    link = RecordingLink()
    sent: list[int] = []

    def on_event(event):
        if isinstance(event, Progress) and 0 < event.done < 2_900_000 and not sent:
            sent.append(-1)
            return Pause()
        if isinstance(event, RunPaused):
            time.sleep(0.3)
            sent.append(hub.sent)
            time.sleep(0.5)
            sent.append(hub.sent)
            return Resume()
        return None

    link.on_event = on_event
    assert download(link=link).ended.status == "completed"
    assert len(link.of(RunPaused)) == len(link.of(RunResumed)) == 1
    assert sent[1] == sent[2] > 0
    assert hub.sent <= 1.1 * sum(repo.size(n) for n in repo.files)
    assert installed(ws) == repo.files[WEIGHTS]


def test_pause_and_stop_work_during_the_wait_for_a_retry(hub, repo, ws, download, monkeypatch):
    monkeypatch.setenv("GLADIUS_RETRY_SECONDS", "60")
    hub.faults = [Fault(path="api/models", status=503)]
    link = RecordingLink()

    def on_event(event):
        if "retrying in" in getattr(event, "text", ""):
            return Pause()
        return Stop() if isinstance(event, RunPaused) else None

    link.on_event = on_event
    began = time.monotonic()
    assert download(link=link).ended.status == "stopped"
    assert time.monotonic() - began < 10
    link = RecordingLink()
    hub.faults = [Fault(path=STORE, status=503)]
    link.on_event = on_event
    assert download(link=link).ended.status == "stopped"
    assert time.monotonic() - began < 20


def test_a_stopped_download_is_resumed_by_the_next_call(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, rate=3_000_000)]
    link = RecordingLink()
    link.on_event = lambda e: (
        Stop(signal=15) if isinstance(e, Progress) and 500_000 < e.done < 2_900_000 else None
    )
    assert download(link=link).ended.status == "stopped"
    received = part_of(ws, repo).stat().st_size
    assert 0 < received < repo.size(WEIGHTS)
    assert state(ws) == "partial"
    assert "iB downloaded" in expert_status(ws, load_experts(ws)["x"]).detail
    assert download().ended.status == "completed"
    assert weights_requests(hub)[-1]["Range"] == f"bytes={received}-"


class StopAtTrial(RecordingLink):
    """Stops the job while the expert is tried."""

    def heartbeat(self, activity: str = "") -> None:
        if activity.startswith("trying x"):
            self.commands.append(Stop())


def test_stop_while_the_expert_is_tried_ends_the_job_at_once(hub, repo, ws, download):
    began = time.monotonic()
    assert download(link=StopAtTrial()).ended.status == "stopped"
    assert time.monotonic() - began < 10
    assert expert_status(ws, load_experts(ws)["x"]).state == "partial"
    before = len(hub.file_requests())
    assert download().ended.status == "completed"
    assert len(hub.file_requests()) == before, "nothing is downloaded twice"


def test_several_experts_download_in_parallel_within_the_connection_limit(hub, ws, download):
    names = [f"e{n}" for n in range(6)]
    tables = [f'[experts.{name}]\nrepo = "me/{name}"\n' for name in names]
    ws.user_config.write_text("".join(tables))
    for seed, name in enumerate(names):
        hub.add(f"me/{name}", {**model_files(), WEIGHTS: safetensors(600_000, seed)})
    hub.faults = [
        Fault(path=r"/e[0-4]/model.safetensors$", rate=600_000, times=99),
        Fault(path=r"/e5/resolve", status=403, times=99),
    ]
    link = RecordingLink()
    most = 0
    started: set[str] = set()
    together: set[str] = set()

    def on_event(event):
        nonlocal most
        if isinstance(event, Progress) and event.task.endswith(WEIGHTS) and event.done > 0:
            if not event.finished:
                started.add(event.task)
            elif not together:
                together.update(started)
        most = max(most, sum(t.name.startswith("get ") for t in threading.enumerate()))

    link.on_event = on_event
    download(*names, link=link)
    assert link.ended.reason.startswith("1 of 6 failed (e5)")
    assert 2 <= most <= downloads.CONNECTIONS
    assert len(together) >= 2, "weights of several experts, before one was complete"
    for seed, name in enumerate(names[:5]):
        assert (ws.experts_dir / name / WEIGHTS).read_bytes() == safetensors(600_000, seed)


# Files that are already here


def test_a_ready_expert_is_downloaded_again_only_with_force(hub, repo, ws, download):
    download()
    requests = len(hub.requests)
    link = download()
    assert link.ended.status == "completed" and "x is already ready" in link.lines
    assert len(hub.requests) == requests, "a ready expert needs no network"
    inode = (ws.experts_dir / "x" / WEIGHTS).stat().st_ino
    assert download(force=True).ended.status == "completed"
    assert (ws.experts_dir / "x" / WEIGHTS).stat().st_ino != inode
    assert len(weights_requests(hub)) == 2
    assert [path.name for path in ws.experts_dir.iterdir()] == ["x"]


def test_only_the_damaged_file_of_an_expert_is_downloaded_again(hub, ws, download, tmp_path):
    hub.add("me/x", {**model_files(), **big_shards(tmp_path / "shards", 4)})
    download()
    second = ws.experts_dir / "x" / "model-00002-of-00002.safetensors"
    second.unlink()
    before = hub.sent
    assert state(ws) == "partial"
    assert download().ended.status == "completed"
    assert hub.sent - before == second.stat().st_size
    assert state(ws) == "ready"


def test_files_with_a_changed_time_are_verified_again_without_network(hub, repo, ws, download):
    download()
    os.utime(ws.experts_dir / "x" / WEIGHTS)
    status = expert_status(ws, load_experts(ws)["x"])
    assert status.state == "partial" and "models --verify" in status.detail
    requests = len(hub.requests)
    assert any("nothing to download" in line for line in download().lines)
    assert state(ws) == "ready" and len(hub.requests) == requests


def test_a_part_file_of_an_older_commit_is_used_for_the_same_content(hub, repo, ws, download):
    hub.faults = [Fault(path=STORE, cut_after=1_000_000), Fault(path=STORE, status=403, times=99)]
    assert "the Hub's storage of large files answers 403; failed 8" in download().ended.reason
    hub.faults = []
    newer = hub.add("me/x", {**repo.files, "config.json": CONFIG + b" "}, commit="c" * 40)
    assert download().ended.status == "completed"
    assert weights_requests(hub)[-1]["Range"] == "bytes=1000000-"
    assert installed(ws, "config.json") == newer.files["config.json"]
    assert json.loads(installed(ws, "manifest.json"))["revision"] == "c" * 40


def test_the_same_content_under_two_names_is_downloaded_once(hub, repo, ws, download):
    repo.files["vocab.json"] = repo.files["added_tokens.json"] = b'{"a": 0}'
    assert download().ended.status == "completed"
    assert installed(ws, "vocab.json") == installed(ws, "added_tokens.json")
    paths = [path for _, path, _ in hub.file_requests()]
    assert sum("vocab" in path or "added_tokens" in path for path in paths) == 1


def test_a_mirror_without_hashes_in_its_listing_is_queried_for_each_file(hub, repo, ws, download):
    repo.bare = True
    assert download().ended.status == "completed"
    assert installed(ws) == repo.files[WEIGHTS]
    heads = [path for method, path, _ in hub.requests if method == "HEAD"]
    assert len(heads) == 4


def test_leftovers_of_a_download_are_removed_by_the_next(hub, repo, ws, download):
    folder = ws.downloads_dir / "x"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "pytorch_model.bin").write_bytes(b"x")
    (folder / f"{'d' * 64}.part").write_bytes(b"x")
    assert download().ended.status == "completed"
    assert not (ws.experts_dir / "x" / "pytorch_model.bin").exists()
    assert not folder.exists()


class _Killed(BaseException):
    """Simulates a kill: no handler catches it."""


@pytest.mark.parametrize("moment", ["manifest", "moved away", "installed"])
def test_after_a_kill_during_the_install_the_next_call_installs_without_downloading(
    hub, repo, ws, download, monkeypatch, moment
):
    download()
    (ws.experts_dir / "x" / "config.json").write_bytes(b"an older one")

    install_expert = downloads.install_expert

    def kill(*arguments) -> None:
        if moment == "installed":
            install_expert(*arguments)
        raise _Killed

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        if moment == "moved away":  # the old folder is moved away, the new one not yet installed
            patch.setattr(install, "publish_dir", kill)
        else:
            patch.setattr(downloads, "install_expert", kill)
        download(force=True)
    sent = hub.sent
    assert download().ended.status == "completed"
    assert hub.sent == sent and state(ws) == "ready"
    assert installed(ws, "config.json") == repo.files["config.json"]
    assert not list(ws.downloads_dir.rglob("*.part"))


# The disk


def test_a_disk_that_is_too_small_fails_before_the_first_byte(hub, repo, ws, download, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000_000))
    link = download()
    assert link.ended.exit_code == 1
    assert "need 2.9 MiB (x 2.9 MiB) and only 47.7 MiB are free" in link.ended.reason
    assert not hub.file_requests() and not (ws.downloads_dir / "x").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_downloads_on_another_file_system_are_copied_as_a_whole(
    hub, repo, ws, download, monkeypatch, fails
):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        if os.stat(elsewhere).st_dev == os.stat(ws.root).st_dev:
            pytest.skip("needs a second file system")
        ws.downloads_dir.rmdir()
        ws.downloads_dir.symlink_to(elsewhere)
        if fails:
            full = OSError(errno.ENOSPC, "No space left on device")
            monkeypatch.setattr(shutil, "copytree", lambda *_: (_ for _ in ()).throw(full))
            assert "the disk is full" in download().ended.reason
            assert not list(ws.experts_dir.iterdir())
            monkeypatch.undo()
            return
        assert download().ended.status == "completed"
        assert state(ws) == "ready" and installed(ws) == repo.files[WEIGHTS]
        assert not os.listdir(elsewhere)
        (ws.experts_dir / "x" / "config.json").unlink()
        assert download().ended.status == "completed"
        assert len(weights_requests(hub)) == 1, "intact files are reused"
    assert [path.name for path in ws.experts_dir.iterdir()] == ["x"]


def test_a_full_disk_is_a_one_line_error_and_the_download_can_be_resumed(
    hub, repo, ws, download, monkeypatch
):
    written = 0

    def write(descriptor: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        if written > 1_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, data)

    monkeypatch.setattr(transfer, "os", SimpleNamespace(**{**vars(os), "write": write}))
    link = download()
    assert link.ended.exit_code == 1
    assert "the disk is full (" in link.ended.reason and "to resume" in link.ended.reason
    monkeypatch.undo()
    assert 0 < part_of(ws, repo).stat().st_size <= 1_000_000
