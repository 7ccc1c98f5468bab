"""The Hub is out of reach in tests: a small server speaks its HTTP, the real client talks to it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine.errors import UsageError
from engine.experts.fetch import _wanted

COMMIT = "a" * 40
JOB = """
import sys
from engine.experts.fetch import main
from engine.run.events import JobRequest, encode

class Link:
    def emit(self, event): print(encode(event).decode(), flush=True)
    def poll(self): return []
    def beat(self, doing=""): pass

sys.exit(main(Link(), JobRequest(job="download", root=sys.argv[1], run_id="r", attempt=1,
                                 config=b'{"names": ["x"]}')))
"""


class FakeHub:
    """One repository, `me/x`; `refuse` answers its info with that status."""

    def __init__(self) -> None:
        weights = save({"w": torch.arange(64.0)})
        self.files = {
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b"{}",
            "model.safetensors": weights,
            "pytorch_model.bin": b"never fetched",
            "evil.py": b"never fetched",
        }
        self.claimed_sha256 = hashlib.sha256(weights).hexdigest()
        self.refuse: tuple[int, str] | None = None
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                hub.asked.append(path)
                if hub.refuse is not None:
                    status, code = hub.refuse
                    self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": "no"})
                elif path.startswith("/api/models/me/x/tree/"):
                    self.answer(200, json.dumps(hub.siblings("path")).encode(), {})
                elif path.startswith("/api/models/me/x"):
                    info = {"id": "me/x", "sha": COMMIT, "siblings": hub.siblings("rfilename")}
                    self.answer(200, json.dumps(info).encode(), {})
                else:
                    name = path.removeprefix(f"/me/x/resolve/{COMMIT}/")
                    data = hub.files[name]
                    etag = hashlib.sha256(data).hexdigest()
                    self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

            def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def siblings(self, key: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for name, data in self.files.items():
            row: dict[str, object] = {
                key: name, "size": len(data), "type": "file", "oid": "b" * 40, "blobId": "b" * 40,
            }  # fmt: skip
            if name.endswith(".safetensors"):
                lfs = {"sha256": self.claimed_sha256, "size": len(data), "pointerSize": 1}
                row["lfs"] = {**lfs, "oid": self.claimed_sha256}
            rows.append(row)
        return rows


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.server.shutdown()


def _download(root: Path, endpoint: str, **environment: str) -> tuple[int, dict[str, str]]:
    """Run the job in a process of its own; its exit code and last event."""
    root.mkdir(exist_ok=True)
    (root / "gladius.toml").write_text('[experts.x]\nrepo = "me/x"\n')
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(root)],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_only_safetensors_and_plain_data_are_fetched_verified_and_published(
    hub: FakeHub, tmp_path: Path
) -> None:
    code, ended = _download(tmp_path, hub.url)
    assert (code, ended["status"]) == (0, "completed")
    folder = tmp_path / "tmp" / "models" / "x"
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "manifest.json"}
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["revision"] == COMMIT
    assert manifest["files"]["model.safetensors"]["sha256"] == hub.claimed_sha256


def test_a_wrong_hash_is_never_published(hub: FakeHub, tmp_path: Path) -> None:
    hub.claimed_sha256 = "0" * 64
    code, ended = _download(tmp_path, hub.url)
    assert (code, ended["status"]) == (1, "failed")
    assert "sha256" in ended["reason"]
    assert not (tmp_path / "tmp" / "models" / "x").exists()


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        ((403, "GatedRepo"), "accept its licence"),
        ((404, "RepoNotFound"), "check the name"),
        ((404, "RevisionNotFound"), "no revision main"),
        ((401, ""), "HF_TOKEN"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy_and_without_the_token(
    hub: FakeHub, tmp_path: Path, refusal: tuple[int, str], remedy: str
) -> None:
    hub.refuse = refusal
    code, ended = _download(tmp_path, hub.url, HF_TOKEN="hf_secretsecret")
    assert (code, ended["status"]) == (1, "failed")
    assert remedy in ended["reason"]
    assert "\n" not in ended["reason"]
    assert "secret" not in ended["reason"]


def test_without_a_network_the_reason_says_so(tmp_path: Path) -> None:
    code, ended = _download(tmp_path, "http://127.0.0.1:9")
    assert (code, ended["status"]) == (1, "failed")
    assert "can't be reached" in ended["reason"]


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\x.json"])
def test_a_file_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        _wanted(name)


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("chat_template.jinja", True),
        ("tokenizer.model", True),
        ("pytorch_model.bin", False),
        ("original/consolidated.00.pth", False),
        ("original/params.json", False),
        ("modeling_custom.py", False),
    ],
)
def test_which_files_of_a_repository_are_wanted(name: str, fetched: bool) -> None:
    assert _wanted(name) is fetched
