"""Fixtures of tests that run the program as a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fork_server import ForkServer, fork_server
from tests.support.roots import environment, expert, make_root, root, text

__all__ = ["environment", "expert", "make_root", "root", "text"]


@pytest.fixture(scope="session")
def server(environment: None) -> Iterator[ForkServer]:
    """Runs commands in forks of one process that has loaded torch."""
    with fork_server() as running:
        yield running
