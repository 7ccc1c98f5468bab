"""A Hub of our own for the real client, a tiny model on it, and a root to download to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from huggingface_hub import close_session, constants
from tokenizers import Tokenizer
from tokenizers.models import BPE

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "hub"))

from hub_server import Hub, Repo  # noqa: E402

from engine.experts.fetch import DownloadRequest, main  # noqa: E402
from engine.run.events import (  # noqa: E402
    AnyCommand,
    Event,
    JobRequest,
    LogLine,
    Progress,
    RunEnded,
)
from engine.workspace import Workspace  # noqa: E402

TOKENIZER = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str().encode()
CONFIG = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 3}


def safetensors(count: int, seed: int = 0, name: str = "w") -> bytes:
    """A whole safetensors file with one tensor of `count` bytes that look random."""
    import random

    entry = {name: {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    header = json.dumps(entry).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(count)


def model_files(count: int = 3_000_000, **more: bytes | Path) -> dict[str, bytes | Path]:
    """A repository's files: a tiny model with weights of `count` bytes, and what is not wanted."""
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": b'{"model_max_length": 64}',
        "model.safetensors": safetensors(count),
        "pytorch_model.bin": b"never fetched",
        "evil.py": b"never fetched",
        "original/consolidated.00.pth": b"never fetched",
        **more,
    }


class RecordingLink:
    """The worker's side of the hall: what it was told is kept, and commands come when a test says.

    `on_event(event)` may return a command, which is then what the job polls next.
    """

    def __init__(self, *commands: AnyCommand) -> None:
        self.events: list[Event] = []
        self.commands: list[AnyCommand] = list(commands)
        self.on_event: Callable[[Event], AnyCommand | None] = lambda event: None

    def emit(self, event: Event) -> None:
        self.events.append(event)
        command = self.on_event(event)
        if command is not None:
            self.commands.append(command)

    def poll(self) -> list[AnyCommand]:
        commands, self.commands = self.commands, []
        return commands

    def wait(self, timeout: float) -> list[AnyCommand]:
        import time

        time.sleep(min(timeout, 0.05))
        return self.poll()

    def beat(self, doing: str = "") -> None:
        pass

    @contextmanager
    def busy(self, doing: str, at_most: float = 3600.0) -> Iterator[None]:
        yield

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ended(self) -> RunEnded:
        assert isinstance(self.events[-1], RunEnded)
        return self.events[-1]

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.of(LogLine)]

    def tasks(self) -> set[str]:
        return {event.task for event in self.of(Progress)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The server, as HF_ENDPOINT for this process; waits between tries are short.

    The client reads its environment when it is imported, so its constants are set; tests that
    start the program as a process of its own go by HF_ENDPOINT.
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
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
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
    """Runs the job in this process: `download("x", force=True)`; returns what it told."""

    def run(*names: str, link: RecordingLink | None = None, **fields: object) -> RecordingLink:
        link = link or RecordingLink()
        config = msgspec.json.encode(DownloadRequest(names=list(names or ("x",)), **fields))  # type: ignore[arg-type]
        request = JobRequest(
            job="download", root=str(ws.root), run_id="r", attempt=1, config=config
        )
        code = main(link, request)
        assert code == (1 if link.ended.status == "failed" else 0)
        return link

    return run
