"""Hosts of the toy job, and the workspace that they run in."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.run.history import History
from engine.workspace import Workspace
from tests.support.hosting import Host
from tests.support.toy_job import ToyConfig


@pytest.fixture(scope="session", autouse=True)
def _runtime_dir() -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="gt-")
    former = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = folder
    yield
    os.environ.pop("XDG_RUNTIME_DIR")
    if former is not None:
        os.environ["XDG_RUNTIME_DIR"] = former
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    return workspace


@pytest.fixture
def host(ws: Workspace) -> Iterator[Callable[..., Host]]:
    """Starts hosts; whatever is left of them, workers included, is killed at the end."""
    hosts: list[Host] = []

    def start(config: ToyConfig | None = None, *options: str, **env: str) -> Host:
        hosts.append(Host(ws, config or ToyConfig(), *options, **env))
        return hosts[-1]

    yield start
    for one in hosts:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, signal.SIGCONT)
            os.killpg(one.pid, signal.SIGKILL)
        one.process.wait()


@pytest.fixture
def history(ws: Workspace) -> Iterator[History]:
    made = History(ws.history_file)
    yield made
    made.close()
