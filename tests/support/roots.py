"""Fixtures of tests that run the program: a tiny expert, a generated text and temporary roots."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.program import Root
from tests.support.tiny_expert import make_expert

_WORDS = ("river", "town", "bank", "old", "snow", "stone", "bridge", "water", "mill", "field")


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[None]:
    """Environment of started processes: one passive thread, a short path for sockets, no Hub."""
    folder = tempfile.mkdtemp(prefix="gt-")
    variables = {
        "XDG_RUNTIME_DIR": folder,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    yield
    for name, value in former.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def expert(tmp_path_factory) -> Path:
    return make_expert(tmp_path_factory.mktemp("experts") / "tiny")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file with 60 examples: documents and conversations."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for n in range(60):
            words = " ".join(rng.choice(_WORDS) for _ in range(25))
            example: dict[str, object] = {"text": words}
            if n % 3 == 0:
                question = {"role": "user", "content": f"Tell of the {rng.choice(_WORDS)}."}
                example = {"messages": [question, {"role": "assistant", "content": words}]}
            file.write(json.dumps(example) + "\n")
    return path


@pytest.fixture(scope="session")
def make_root(expert: Path, text: Path, tmp_path_factory) -> Iterator[Callable[[str], Root]]:
    """Makes roots by name; their processes are killed at the end of the session."""
    roots: list[Root] = []

    def make(name: str) -> Root:
        roots.append(Root(tmp_path_factory.mktemp(name), expert, text))
        return roots[-1]

    yield make
    for root in roots:
        root.kill_all()


@pytest.fixture
def root(expert: Path, text: Path, tmp_path: Path) -> Iterator[Root]:
    root = Root(tmp_path, expert, text)
    yield root
    root.kill_all()
