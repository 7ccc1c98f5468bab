"""A short folder for the control sockets of the processes that the golden tests start."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def runtime() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="gt-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
