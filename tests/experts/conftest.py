"""A local Hub server for the real client, a tiny model on it, and a root to download to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import close_session, constants

from engine.events import JobRequest
from engine.experts.fetch import DownloadRequest, main
from engine.run.job import JobContext
from engine.workspace import Workspace
from tests.support.downloading import RecordingLink, model_files
from tests.support.hub_repo import Repo
from tests.support.hub_server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The server, set as the Hub endpoint of this process; waits between retries are short.

    huggingface_hub reads its environment on import, so its constants are patched. Tests that start
    a subprocess set HF_ENDPOINT instead.
    """
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    proxies = [f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")]
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", *proxies):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("GLADIUS_RETRY_SECONDS", "0.01")
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture
def repo(hub: Hub) -> Repo:
    """`me/x`, a model of 3 MB."""
    return hub.add("me/x", model_files())


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """A root with the expert `x` from `me/x`."""
    workspace = Workspace.find(tmp_path / "root")
    workspace.create()
    workspace.user_config.write_text('[experts.x]\nrepo = "me/x"\n')
    return workspace


@pytest.fixture
def download(ws: Workspace) -> Callable[..., RecordingLink]:
    """Runs the job in this process, `download("x", force=True)`; returns the recorded events."""

    def run(*names: str, link: RecordingLink | None = None, **fields: object) -> RecordingLink:
        link = link or RecordingLink()
        config = msgspec.json.encode(DownloadRequest(names=list(names or ("x",)), **fields))  # type: ignore[arg-type]
        request = JobRequest(
            job="download", root=str(ws.root), run_id="r", attempt=1, config=config
        )
        code = main(JobContext(link), request)
        assert code == (1 if link.ended.status == "failed" else 0)
        return link

    return run
