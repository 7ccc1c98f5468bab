"""A download of 320 MB is interrupted 20 times at random positions, in four different ways.

Slow: `make faults` runs it. GLADIUS_CUTS_SEED changes the positions.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.experts.registry import expert_status, load_experts
from engine.workspace import Workspace, sha256_file
from tests.support.downloading import big_shards, model_files
from tests.support.hub_server import Hub

MEGABYTES = 320
CUTS = 20
PROGRAM = (sys.executable, "-m", "gladius_tui.cli")
KINDS = ("connections dropped", "kill -9 of all", "kill -9 of the worker", "SIGTERM")


class Download:
    """The download command in its own process group."""

    def __init__(self, root: Path, endpoint: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "GLADIUS_RETRY_SECONDS": "0.05"}
        environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        with open(root / "out.txt", "ab") as out:
            self.process = subprocess.Popen(
                [*PROGRAM, "--root", root, "--no-ui", "download", "big"],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return []

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _cut(kind: str, hub: Hub, running: Download) -> None:
    if kind == KINDS[0]:
        assert hub.drop()
    elif kind == KINDS[1]:
        running.end()
    elif kind == KINDS[2]:
        (worker,) = running.workers()
        worker.kill()
    else:
        running.process.terminate()
        assert running.process.wait(30) == 128 + signal.SIGTERM


def _output(root: Path) -> str:
    return (root / "out.txt").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_interruptions_give_the_same_bytes_for_at_most_a_tenth_more_traffic(tmp_path: Path):
    seed = int(os.environ.get("GLADIUS_CUTS_SEED", "1"))
    rng = random.Random(seed)
    shards = big_shards(tmp_path / "hub", MEGABYTES)
    hub = Hub(rate=15e6)
    small = ("config.json", "tokenizer.json", "tokenizer_config.json")
    files = {name: data for name, data in model_files().items() if name in small}
    repo = hub.add("me/big", {**files, **shards})
    total = sum(repo.size(name) for name in repo.files)
    root = tmp_path / "root"
    root.mkdir()
    (root / "gladius.toml").write_text('[experts.big]\nrepo = "me/big"\n')
    ws = Workspace.find(root)
    # Positions between 2 and 97 percent; every kind of interruption equally often.
    positions = sorted(rng.uniform(0.02, 0.97) * total for _ in range(CUTS))
    kinds = list(KINDS) * (CUTS // len(KINDS))
    rng.shuffle(kinds)
    done: list[str] = []
    sent = 0
    began = time.monotonic()
    running = Download(root, hub.url)
    try:
        while (code := running.process.poll()) != 0:
            assert code in (None, -signal.SIGKILL, 128 + signal.SIGTERM), _output(root)
            if code is not None:
                running = Download(root, hub.url)
            received = sum(p.stat().st_size for p in ws.downloads_dir.rglob("*.*") if p.is_file())
            moving = running.process.poll() is None and hub.sent > sent
            if moving and len(done) < CUTS and received >= positions[len(done)]:
                _cut(kinds[len(done)], hub, running)
                done.append(f"{kinds[len(done)]} at {received / 1e6:.0f} MB")
                time.sleep(0.1)  # let bytes in transit arrive
                sent = hub.sent
            time.sleep(0.02)
    finally:
        running.end()
        hub.close()
    assert len(done) == CUTS
    folder = ws.experts_dir / "big"
    for name in repo.files:
        if repo.is_large(name):
            assert sha256_file(folder / name) == repo.hash(name)
        else:
            assert (folder / name).read_bytes() == repo.files[name]
    assert expert_status(ws, load_experts(ws)["big"]).state == "ready"
    assert not list(ws.downloads_dir.iterdir())
    print(f"seed {seed}: {total:,} bytes, {hub.sent:,} over the wire, {hub.sent / total:.4f} times")
    print(f"{len(done)} cuts in {time.monotonic() - began:.0f} s: {'; '.join(done)}")
    assert hub.sent <= 1.1 * total
