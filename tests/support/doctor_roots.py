"""Fixtures of tests of doctor and audit: a root with a tiny expert, and the doctor command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.tiny_expert import make_expert

Doctor = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_expert(tmp_path_factory.mktemp("experts") / "tiny", context=2048)


@pytest.fixture
def ws(tmp_path: Path, expert: Path) -> Workspace:
    """A root with nothing but gladius.toml, which registers the expert `tiny`."""
    workspace = Workspace.find(tmp_path)
    workspace.user_config.write_text(
        f'[experts.tiny]\nrepo = "{expert}"\nend_tokens = ["<|im_end|>"]\n'
    )
    return workspace


@pytest.fixture
def doctor(ws: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Doctor:
    """Runs the command as a subprocess, without a Hub token or user settings."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "CUDA", "GLADIUS")) and "PROXY" not in name
        }
        environment |= {"HOME": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "80", **env}
        return subprocess.run(
            [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), "doctor", *arguments],
            capture_output=True,
            text=True,
            cwd=REPO,
            env=environment,
            timeout=120,
        )

    return run
