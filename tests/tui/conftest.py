"""A separate root for each test of the user interface, with its own settings and sockets."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.workspace import Workspace


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's config folder. Sockets get a short path: AF_UNIX allows about 100 bytes."""
    runtime = tempfile.mkdtemp(prefix="gt-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield tmp_path / "config"
    shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture
def root(home: Path, tmp_path: Path) -> Workspace:
    """An empty root."""
    workspace = Workspace.find(tmp_path / "root")
    workspace.create()
    return workspace
