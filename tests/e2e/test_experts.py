"""Commands about experts as processes: without network, with a token, and their start time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.events import RunResumed
from engine.experts.install import write_manifest
from engine.experts.registry import Manifest, ManifestFile, expert_status, load_experts
from engine.workspace import write_json
from gladius_tui.cli import app
from tests.support.downloading import model_files
from tests.support.hub_server import Hub
from tests.support.program import LAUNCHER, Root
from tests.support.waiting import until

TOKEN = "hf_averysecrettokenindeed"

# A sitecustomize.py that every Python process of the program runs first.
NO_NETWORK = """
import os, socket
def refuse(self, address, *rest):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{os.getpid()} {address}\\n")
        raise OSError("no network in this test")
    return connect(self, address, *rest)
connect, socket.socket.connect = socket.socket.connect, refuse
socket.socket.connect_ex = refuse
lookup = socket.getaddrinfo
def look(host, *rest, **more):
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{os.getpid()} looks up {host}\\n")
    raise OSError("no network in this test")
socket.getaddrinfo = look
"""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that records every use of the network; all of them fail."""
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(NO_NETWORK)
    calls = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(calls))
    monkeypatch.setenv("PYTHONPATH", str(guard))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


def _ready(root: Root, expert: Path, name: str = "x") -> None:
    """Put an expert in the root as a download from the Hub leaves it."""
    with open(root.path / "gladius.toml", "a") as file:
        file.write(f'[experts.{name}]\nrepo = "me/{name}"\nend_tokens = ["<|im_end|>"]\n')
    root.ws.create()
    folder = root.ws.experts_dir / name
    shutil.copytree(expert, folder)
    write_manifest(folder, load_experts(root.ws)[name], "a" * 40)


QUICK = (
    (0, "status"),
    (0, "models"),
    (0, "models --verify"),
    (0, "download x tiny"),
    (0, "train"),
    (0, "dashboard"),
    (0, "runs"),
    (3, "data inspect"),
    (3, "pause"),
    (3, "checkpoint"),
    (3, "stop"),
    (0, "clean --confirm"),
)
SLOW = (
    (0, "models add mine ./own"),
    (0, "models remove mine"),
    (0, "doctor --preset nano --experts x"),
    (0, "train"),
    (0, "resume --set schedule.max_steps=4"),
    (0, "export --type f32"),
    (0, "validate"),
    (0, "ask Hello"),
)
"""Commands with their exit codes; `train` stands for a small training run with x."""


@pytest.mark.parametrize("commands", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_no_command_uses_the_network_when_the_files_are_here(
    root: Root, expert, offline, monkeypatch, commands
):
    _ready(root, expert)
    shutil.copytree(expert, root.path / "own")
    monkeypatch.chdir(root.path)
    guarded = [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"]
    assert subprocess.run(guarded, capture_output=True).returncode == 1
    assert "127.0.0.1" in offline.read_text(), "the guard works"
    offline.unlink()
    training = [word.replace("tiny", "x") for word in root.training(max_steps=2)]
    for code, line in commands:
        done = root.run("--no-ui", *(training if line == "train" else line.split()))
        assert done.returncode == code, (line, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    assert root.status() == "completed"
    assert not offline.exists(), offline.read_text()


def test_every_command_is_run_without_network():
    assert {line.split()[0] for _, line in (*QUICK, *SLOW)} == set(app.commands)


def test_the_token_is_sent_to_the_hub_but_never_printed_or_stored(
    root: Root, expert, hub: Hub, monkeypatch
):
    files = {path.name: path.read_bytes() for path in expert.iterdir()}
    hub.add("me/x", files, gated=True)
    hub.licensed = {TOKEN}
    (root.path / "gladius.toml").write_text('[experts.x]\nrepo = "me/x"\n')
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    outputs = []
    for token, code in (("hf_wrong" + TOKEN, 3), (TOKEN, 0)):
        monkeypatch.setenv("HF_TOKEN", token)
        done = root.run("--no-ui", "--json", "download", "x")
        assert done.returncode == code, done.stderr
        outputs += [done.stdout, done.stderr]
    assert expert_status(root.ws, load_experts(root.ws)["x"]).state == "ready"
    assert any("Bearer " + TOKEN in str(headers) for _, _, headers in hub.requests)
    outputs += [p.read_bytes().decode("latin-1") for p in root.path.rglob("*") if p.is_file()]
    assert "rejects the token (401)" in outputs[1]
    for secret in (TOKEN, "secret-of-the-address"):
        assert not any(secret in text for text in outputs)


def test_a_second_terminal_pauses_and_resumes_a_download(root: Root, expert, hub, monkeypatch):
    files = {path.name: path.read_bytes() for path in expert.iterdir()}
    hub.add("me/x", files | {"model.safetensors": bytes(40_000_000)})
    hub.rate = 4_000_000
    (root.path / "gladius.toml").write_text('[experts.x]\nrepo = "me/x"\n')
    for name, value in (("HF_ENDPOINT", hub.url), ("NO_PROXY", "*"), ("no_proxy", "*")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    running = root.start("download", "x")
    until(lambda: hub.sent > 1_000_000)
    paused = root.run("pause")
    assert (paused.returncode, paused.stdout) == (0, "paused\n"), paused.stderr
    time.sleep(0.5)
    sent = hub.sent
    time.sleep(1.0)
    assert hub.sent == sent
    assert "iB downloaded; gladius_train download x" in root.run("models").stdout
    assert "has no checkpoints" in root.error_of(2, "checkpoint")
    assert root.run("resume", "--job", "download").stdout == "resumed\n"
    until(lambda: hub.sent > sent)
    assert root.run("stop").stdout == "stopped; run the same command again to continue\n"
    assert running.end() == 0
    assert any(isinstance(event, RunResumed) for event in running.events())
    assert list(root.ws.downloads_dir.rglob("*.part"))


def test_a_download_stopped_by_a_signal_is_resumed_by_the_next_call(root: Root, hub, monkeypatch):
    size = 24_000_000
    hub.add("me/x", model_files(size))
    hub.rate = 4_000_000
    (root.path / "gladius.toml").write_text('[experts.x]\nrepo = "me/x"\n')
    for name, value in (("HF_ENDPOINT", hub.url), ("NO_PROXY", "*"), ("no_proxy", "*")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        sent = hub.sent
        running = root.start("download", "x")
        until(lambda: hub.sent > sent + 1_000_000)  # noqa: B023
        running.process.send_signal(signal.SIGHUP)
        until(lambda: hub.sent > sent + 3_000_000)  # noqa: B023
        assert running.end(number) == code
        assert "run the same command again to continue" in running.events()[-1].reason
    hub.rate = None
    assert root.start("download", "x").end() == 0
    assert expert_status(root.ws, load_experts(root.ws)["x"]).state == "ready"
    assert hub.sent <= 1.1 * size


def test_a_users_own_expert_is_checked_added_and_removed(root: Root, expert, tmp_path):
    before = (root.path / "gladius.toml").read_text()
    own = tmp_path / "own"
    shutil.copytree(expert, own)
    added = root.run("models", "add", "mine", str(own), "--weight", "2", "--capability", "math")
    assert added.returncode == 0, added.stderr
    assert "added mine; train with it: gladius_train train --experts mine" in added.stdout
    spec = load_experts(root.ws)["mine"]
    assert (spec.weight, spec.capabilities) == (2.0, ("math",))
    removed = root.run("models", "remove", "mine")
    assert removed.returncode == 0 and removed.stdout == "removed mine\n"
    assert (root.path / "gladius.toml").read_text() == before
    (own / "model.safetensors").rename(own / "pytorch_model.bin")
    line = root.error_of(1, "models", "add", "mine", str(own))
    assert "only safetensors are loaded" in line
    assert (root.path / "gladius.toml").read_text() == before
    assert "--verify goes without" in root.error_of(2, "models", "--verify", "remove", "mine")


def test_models_is_fast_with_thirteen_gigabytes_on_disk(root: Root):
    root.ws.create()
    specs = load_experts(root.ws)
    for name in ("qwen", "llama", "phi", "tinyllama"):
        folder = root.ws.experts_dir / name
        folder.mkdir()
        files = {}
        for file, size in (("config.json", 2), ("model.safetensors", specs[name].size_bytes)):
            with open(folder / file, "wb") as sparse:
                sparse.truncate(size)
            written = (folder / file).stat().st_mtime_ns
            files[file] = ManifestFile(size=size, sha256="0" * 64, mtime_ns=written)
        write_json(folder / "manifest.json", Manifest(files=files))
    # CPU time: on a busy machine wall-clock time varies more.
    cpu_seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [LAUNCHER, "--root", root.path, "models", "--json"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    rows = json.loads(done.stdout)
    assert [row["name"] for row in rows if row["state"] == "ready"] == [*list(specs)[:4], "tiny"]
    assert sum(row["present_bytes"] for row in rows) > 13e9
    assert min(cpu_seconds) < 0.3
    assert os.stat(root.ws.experts_dir / "phi" / "model.safetensors").st_blocks == 0
