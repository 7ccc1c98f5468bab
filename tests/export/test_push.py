"""The way to the Hub, with the real client and a Hub of our own (its files by git LFS, not Xet)."""

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
    """The server, for the client in this process, which writes with a token of its own."""
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


def test_model_file_and_card_come_to_the_hub_as_they_are_here(root: Workspace, hub: Hub) -> None:
    (root.model_dir / "validation.json").write_text('{"model": {"path": "/home/me"}}')
    link = export(root, push="me/student", private=True)
    there = hub.repos["me/student"]
    assert there.private
    assert {"gladius-model.gguf", "Modelfile", "README.md", "model.safetensors"} <= set(there.files)
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(there.files)
    assert "validation.json" not in there.files, "it names folders of this machine"
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


def test_a_card_that_a_person_wrote_goes_too(root: Workspace, hub: Hub) -> None:
    (root.model_dir / "README.md").write_text("---\nlicense: mit\n---\nmine")
    export(root, push="me/student")
    files = hub.repos["me/student"].files
    assert files["README.md"] == b"---\nlicense: mit\n---\nmine" and "README.gladius.md" in files
    (root.model_dir / "README.md").write_text("no header")
    with pytest.raises(GladiusError, match=r"refuses the model card.*correct its header"):
        export(root, push="me/student")


def test_nothing_is_written_where_nobody_is_signed_in(root, hub, monkeypatch) -> None:
    before = set(root.model_dir.iterdir())
    with pytest.raises(UsageError, match="give an owner and a name"):
        export(root, push="student")
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(MissingError, match=r"nobody is signed in.*hf auth login"):
        export(root, push="me/student")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MissingError, match=r"401.*HF_TOKEN") as raised:
        export(root, push="me/student")
    assert "hf_wrong" not in str(raised.value)
    assert set(root.model_dir.iterdir()) == before and not hub.repos


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault("repos/create", "POST", status=500), "answered 500 for me/student; try again"),
        (Fault("commit/main", "POST", status=500), "answered 500"),
        (Fault("commit/main", "POST", status=429), "answered 429"),
    ],
)
def test_what_the_hub_cannot_do_is_one_line_and_the_file_stays(root, hub, fault, why) -> None:
    hub.faults.append(fault)
    with pytest.raises(GladiusError, match=why) as raised:
        export(root, push="me/student")
    assert "\n" not in str(raised.value)
    assert (root.model_dir / "gladius-model.gguf").is_file()
    assert export(root, push="me/student").of(RunEnded)[-1].status == "completed"


def test_a_token_that_may_only_read_and_a_hub_that_is_away_are_one_line(root, hub) -> None:
    hub.readers.add(TOKEN)
    with pytest.raises(MissingError, match=r"lets nobody write me/student.*403"):
        export(root, push="me/student")
    hub.close()
    hub.drop()
    with pytest.raises(GladiusError, match=r"can't be reached.*check the network") as raised:
        export(root, push="me/student")
    assert "\n" not in str(raised.value) and TOKEN not in str(raised.value)


def test_stop_while_it_is_uploaded_says_that_the_file_is_done(root: Workspace, hub: Hub) -> None:
    hub.faults.append(Fault("objects", "PUT", hang=1.0, times=9))

    def react(event):
        return [Stop()] if isinstance(event, Progress) and "uploading" in event.label else []

    link = export(root, KeepingLink(react), push="me/student")
    ended = link.of(RunEnded)[-1]
    assert ended.status == "stopped" and "gladius-model.gguf is done" in ended.reason
    assert link.of(Exported) and hub.repos["me/student"].files == {}
    for thread in threading.enumerate():  # in a worker it ends with the process
        if thread.name == "upload":
            thread.join(30)


def _command(root: Workspace, *words: str) -> list[str]:
    return [str(REPO / "gladius_train"), "--no-ui", "--root", str(root.root), "export", *words]


def test_where_nobody_can_be_asked_it_is_not_uploaded(root: Workspace, hub: Hub) -> None:
    result = subprocess.run(
        _command(root, "--push", "me/student"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "add --yes" in result.stderr
    assert result.stderr.count("\n") == 1 and not hub.requests


def test_a_no_uploads_nothing_and_makes_nothing(root: Workspace, hub: Hub) -> None:
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
        said = process.stderr.read().decode()
    os.close(ours)
    os.close(theirs)
    assert "Upload the model and its GGUF file to me/student" in said and "PUBLIC" in said
    assert "nothing is exported" in said and process.returncode == 1
    assert set(root.model_dir.iterdir()) == before and not hub.requests
