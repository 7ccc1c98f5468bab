"""Uploading with the real Hub client to a local Hub (files by git LFS, not Xet)."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from engine.errors import GladiusError, MissingError, UsageError
from engine.events import Exported, LogLine, Progress, RunEnded, Stop
from engine.export import llama_runtime
from engine.workspace import Workspace
from tests.support.exported import byte_level_tokenizer, export, make_model, root_with
from tests.support.hub_repo import Fault
from tests.support.hub_server import Hub
from tests.support.paths import REPO
from tests.support.small_run import KeepingLink

TOKEN = "hf_averysecrettokenindeed"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A local Hub; the client in this process is pointed at it and has a token."""
    server = Hub()
    server.tokens.add(TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in (f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), byte_level_tokenizer())


@pytest.fixture
def root(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(llama_runtime, "find_python", lambda: None)
    return root_with(model, tmp_path / "root")


def test_model_gguf_file_and_card_are_uploaded_unchanged(root: Workspace, hub: Hub) -> None:
    (root.model_dir / "validation.json").write_text('{"model": {"path": "/home/me"}}')
    link = export(root, push="me/student", private=True)
    there = hub.repos["me/student"]
    assert there.private
    assert {"gladius-model.gguf", "Modelfile", "README.md", "model.safetensors"} <= set(there.files)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(there.files)
    assert "validation.json" not in there.files, "it contains local paths"
    for name, content in there.files.items():
        assert content == (root.model_dir / name).read_bytes(), name
    assert any(f"uploaded to {hub.url}/me/student" in line.text for line in link.of(LogLine))
    assert TOKEN not in str(link.events)


def test_a_second_upload_goes_to_the_same_repository(root: Workspace, hub: Hub) -> None:
    export(root, push="me/student")
    assert not hub.repos["me/student"].private
    export(root, push="me/student", type="q8_0")
    written = (root.model_dir / "gladius-model.gguf").read_bytes()
    assert hub.repos["me/student"].files["gladius-model.gguf"] == written


def test_a_card_written_by_the_user_is_uploaded_too(root: Workspace, hub: Hub) -> None:
    (root.model_dir / "README.md").write_text("---\nlicense: mit\n---\nmine")
    export(root, push="me/student")
    files = hub.repos["me/student"].files
    assert files["README.md"] == b"---\nlicense: mit\n---\nmine" and "README.gladius.md" in files
    (root.model_dir / "README.md").write_text("no header")
    with pytest.raises(GladiusError, match=r"rejected the model card.*correct the metadata"):
        export(root, push="me/student")


def test_nothing_is_written_when_not_signed_in(root, hub, monkeypatch) -> None:
    before = set(root.model_dir.iterdir())
    with pytest.raises(UsageError, match="give an owner and a name"):
        export(root, push="student")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(MissingError, match=r"not signed in.*hf auth login"):
        export(root, push="me/student")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MissingError, match=r"401.*HF_TOKEN") as raised:
        export(root, push="me/student")
    assert "hf_wrong" not in str(raised.value)
    assert set(root.model_dir.iterdir()) == before and not hub.repos


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("repos/create", "POST", status=500), "answered HTTP 500 for me/student; try again"),
        (Fault("commit/main", "POST", status=500), "answered HTTP 500"),
        (Fault("commit/main", "POST", status=429), "answered HTTP 429"),
    ],
)
def test_a_failing_hub_is_a_one_line_error_and_the_file_stays(root, hub, fault, message) -> None:
    hub.faults.append(fault)
    with pytest.raises(GladiusError, match=message) as raised:
        export(root, push="me/student")
    assert "\n" not in str(raised.value)
    assert (root.model_dir / "gladius-model.gguf").is_file()
    assert export(root, push="me/student").of(RunEnded)[-1].status == "completed"


def test_a_read_only_token_and_an_unreachable_hub_are_one_line_errors(root, hub) -> None:
    hub.readers.add(TOKEN)
    with pytest.raises(MissingError, match=r"no write access to me/student.*403"):
        export(root, push="me/student")
    hub.close()
    hub.drop()
    with pytest.raises(GladiusError, match=r"cannot be reached.*check the network") as raised:
        export(root, push="me/student")
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)


def test_stop_during_the_upload_says_that_the_file_is_complete(root: Workspace, hub: Hub) -> None:
    hub.faults.append(Fault("objects", "PUT", hang=1.0, times=9))

    def react(event):
        return [Stop()] if isinstance(event, Progress) and "uploading" in event.label else []

    link = export(root, KeepingLink(react), push="me/student")
    ended = link.of(RunEnded)[-1]
    assert ended.status == "stopped" and "gladius-model.gguf is complete" in ended.reason
    assert link.of(Exported) and hub.repos["me/student"].files == {}
    for thread in threading.enumerate():  # in a worker the thread ends with the process
        if thread.name.startswith("uploading"):
            thread.join(30)


def _command(root: Workspace, *words: str) -> list[str]:
    return [str(REPO / "gladius_train"), "--no-ui", "--root", str(root.root), "export", *words]


def test_without_a_terminal_to_ask_nothing_is_uploaded(root: Workspace, hub: Hub) -> None:
    result = subprocess.run(
        _command(root, "--push", "me/student"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "add --yes" in result.stderr
    assert result.stderr.count("\n") == 1 and not hub.requests


def test_answering_no_uploads_and_exports_nothing(root: Workspace, hub: Hub) -> None:
    before = set(root.model_dir.iterdir())
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        _command(root, "--push", "me/student"),
        stdin=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "HF_ENDPOINT": hub.url},
    ) as process:
        os.write(ours, b"n\n")
        assert process.stderr is not None
        stderr = process.stderr.read().decode()
    os.close(ours)
    os.close(theirs)
    assert "Upload the model and its GGUF file to me/student" in stderr and "PUBLIC" in stderr
    assert "nothing exported" in stderr and process.returncode == 1
    assert set(root.model_dir.iterdir()) == before and not hub.requests
