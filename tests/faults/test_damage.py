"""Damage of every file that a run depends on, between its stop and its resume: the run ends exactly
as if nothing had happened, or is refused in one line. A file that no rule knows fails the test.

Every trial is a copy of the stopped run's root at another path, so each also shows that a root can
be moved.
"""

from __future__ import annotations

import fnmatch
import json
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fork_server import ForkedRunning, ForkServer, run_forked
from tests.support.program import Root
from tests.support.tiny_expert import make_expert
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(900)

STEPS = 12
FIELDS = {
    "checkpoint__interval_steps": 3,
    "schedule__eval_interval": 5,
    "schedule__expert_share": 0.4,
    "data__generate": "true",
    "data__max_answers": 6,
    "data__max_answer_tokens": 12,
    "data__keep_answers": "all",
    "data__capabilities": '["fluency"]',
}

DEPENDED_ON = (
    "gladius.toml",
    "text.jsonl",
    "tiny/*",
    "tmp/checkpoints/step-*",
    "tmp/checkpoints/tokenizer/*",
    "tmp/checkpoints/config.json",
    "tmp/checkpoints/journal.jsonl",
    "tmp/checkpoints/seal.json",
    "tmp/checkpoints/held_out.json",
    "tmp/checkpoints/training_state.json",
    "tmp/experts_cache/projection-*.safetensors",
    "tmp/experts_cache/tiny/*/held_out/*",
    "tmp/experts_cache/tiny/*/train/*",
    "tmp/experts_cache/tiny/*/probes.safetensors",
    "tmp/experts_cache/tiny/answers-*.jsonl",
    "tmp/experts_cache/tiny/verdicts-*.jsonl",
    "tmp/experts_cache/tiny/text-*.jsonl",
    "tmp/logs/history.sqlite*",
)
NOT_DEPENDED_ON = (
    "out-*",  # of the test
    "tmp/.lock",
    "tmp/logs/*.log",
    "tmp/checkpoints/best-*",  # verified when it is exported
)
"""Files that a resumed run does not read."""

REFUSED = ("gladius.toml", "text.jsonl", "tiny/*")
"""Files of the user: the run never changes them, so it may be refused."""


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped, another one, and how the first one ends undisturbed."""

    root: Path
    other: Path
    undisturbed: dict[str, object]


def start(server: ForkServer, root: Root, stop_at: int = 0, **fields: object) -> bool:
    """Train in the root; stop after a step if that is given. False if it was too late for that."""
    running = ForkedRunning(server, root, root.training(STEPS, **{**FIELDS, **fields}))
    if stop_at:
        until(lambda: running.process.poll() is not None or running.steps()[-1:] >= [stop_at])
        running.process.send_signal(signal.SIGTERM)
    code = running.process.wait(90)
    assert code in (0, 143), running.errors.read_text()
    return code == (143 if stop_at else 0)


def prepare(folder: Path, text: Path, first: int = 0) -> Root:
    """A root that holds its expert and its text."""
    root = Root(folder, Path("./tiny"), folder / "text.jsonl")
    make_expert(folder / "tiny")
    lines = text.read_text().splitlines()
    (folder / "text.jsonl").write_text("\n".join(lines[first : first + 48]) + "\n")
    return root


def stopped_run(server: ForkServer, folder: Path, text: Path, **fields: object) -> Stopped:
    for number in range(10):
        root = prepare(folder / f"run-{number}", text)
        if start(server, root, stop_at=5, **fields):
            break
    assert root.status() == "stopped"
    snapshot = folder / "snapshot"
    shutil.copytree(root.path, snapshot)
    code, errors = run_forked(server, root, "resume")
    assert code == 0, errors
    other = prepare(folder / "other", text, first=8)
    start(server, other, **fields, seed=5)
    return Stopped(snapshot, folder / "other", root.trace(STEPS))


@pytest.fixture(scope="module")
def cached(server, text, tmp_path_factory) -> Stopped:
    return stopped_run(server, tmp_path_factory.mktemp("cached"), text)


@pytest.fixture(scope="module")
def online(server, text, tmp_path_factory) -> Stopped:
    """The expert stays in memory, so its files, tables and probes are used again."""
    folder = tmp_path_factory.mktemp("online")
    return stopped_run(server, folder, text, targets__source="online")


def files_of(stopped: Stopped) -> list[str]:
    """The files that a resume depends on; fails for a file of which that is not known."""
    found = []
    for path in sorted(stopped.root.rglob("*")):
        name = path.relative_to(stopped.root).as_posix()
        if path.is_dir() or any(fnmatch.fnmatch(name, p) for p in NOT_DEPENDED_ON):
            continue
        assert any(fnmatch.fnmatch(name, p) for p in DEPENDED_ON), f"unknown file {name}"
        found.append(name)
    return found


# Damage


def flip(path: Path, rng: random.Random, other: Path | None) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random, other: Path | None) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(1, len(data))])


def empty(path: Path, rng: random.Random, other: Path | None) -> None:
    path.write_bytes(b"")


def remove(path: Path, rng: random.Random, other: Path | None) -> None:
    path.unlink()


def replace(path: Path, rng: random.Random, other: Path | None) -> None:
    assert other is not None
    shutil.copyfile(other, path)


def garbage(path: Path, rng: random.Random, other: Path | None) -> None:
    path.write_bytes(rng.choice((b"\xff\xfe{}", b"[" * 200_000, b"\x00" * 64)))


DAMAGE: tuple[Callable[[Path, random.Random, Path | None], None], ...] = (
    flip,
    cut,
    empty,
    remove,
    replace,
    garbage,
)


def counterpart(stopped: Stopped, name: str) -> Path | None:
    """The file of the other run that has the same role."""
    if (stopped.other / name).is_file():
        return stopped.other / name
    parts = ("*" if any(c.isdigit() for c in part) else part for part in name.split("/"))
    role = Path(name).name.partition("-")[0], Path(name).suffix
    for path in sorted(stopped.other.glob("/".join(parts))):
        if path.is_file() and (path.name.partition("-")[0], path.suffix) == role:
            return path
    return None


def check(
    server: ForkServer, stopped: Stopped, folder: Path, name: str, kind: int, rng: random.Random
) -> str:
    """Damage one file of a copy and resume; returns `exact` or `refused`."""
    damage = DAMAGE[kind]
    other = counterpart(stopped, name)
    path = folder / name
    shutil.copytree(stopped.root, folder)
    before = path.read_bytes()
    if not before or (damage is replace and (other is None or other.read_bytes() == before)):
        shutil.rmtree(folder)
        return "skipped"
    damage(path, rng, other)
    root = Root(folder, Path("./tiny"), folder / "text.jsonl", register=False)
    what = f"{damage.__name__} {name}"
    code, errors = run_forked(server, root, "resume")
    if code == 0:
        assert root.trace(STEPS) == stopped.undisturbed, what
        verdict = "exact"
    else:
        assert len(errors) == 1 and code in (1, 2, 3), (what, code, errors)
        assert any(fnmatch.fnmatch(name, pattern) for pattern in REFUSED), (what, errors)
        verdict = "refused"
        if rng.random() < 0.2:
            path.write_bytes(before)  # with the file put back it goes on
            assert run_forked(server, root, "resume") == (0, []), what
            assert root.trace(STEPS) == stopped.undisturbed, what
    shutil.rmtree(folder)
    return verdict


def run_trials(
    server: ForkServer,
    stopped: Stopped,
    tmp_path: Path,
    trials: list[tuple[str, int]],
    rng: random.Random,
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, (name, kind) in enumerate(trials):
        verdict = check(server, stopped, tmp_path / f"t{number}", name, kind, rng)
        counts[verdict] = counts.get(verdict, 0) + 1
    print(json.dumps(counts))
    return counts


def test_a_moved_root_resumes_exactly(server, cached: Stopped, tmp_path):
    root = Root(tmp_path / "moved", Path("./tiny"), tmp_path / "moved/text.jsonl", register=False)
    shutil.rmtree(root.path)
    shutil.copytree(cached.root, root.path, copy_function=shutil.copyfile)  # with other times
    assert run_forked(server, root, "resume") == (0, [])
    assert root.trace(STEPS) == cached.undisturbed


def test_some_damage_of_some_files_is_found_or_repaired(server, cached: Stopped, tmp_path):
    rng = random.Random(1)
    files = files_of(cached)
    chosen = [
        ("tmp/checkpoints/tokenizer/chat_template.jinja", 0),
        ("tmp/checkpoints/journal.jsonl", 0),
        ("tmp/checkpoints/training_state.json", 5),
        ("tmp/logs/history.sqlite", 4),
        *((name, rng.randrange(6)) for name in rng.sample(files, 1)),
    ]
    counts = run_trials(server, cached, tmp_path, chosen, rng)
    assert counts["exact"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", range(len(DAMAGE)), ids=[damage.__name__ for damage in DAMAGE])
def test_every_damage_of_every_file_is_found_or_repaired(server, cached: Stopped, tmp_path, kind):
    """Of the older checkpoints, which a resume does not read, each file is damaged in one way."""
    rng = random.Random(kind)
    newest = max(path.name for path in cached.root.glob("tmp/checkpoints/step-*"))
    trials = []
    files = files_of(cached)
    for pattern in DEPENDED_ON:
        assert fnmatch.filter(files, pattern), f"the run has no {pattern}"
    for number, name in enumerate(files):
        older = "/step-" in name and newest not in name
        if not older or number % len(DAMAGE) == kind:
            trials.append((name, kind))
    counts = run_trials(server, cached, tmp_path, trials, rng)
    assert counts["exact"] > 20 and counts["refused"] >= 1


@pytest.mark.slow
def test_damage_of_what_a_loaded_expert_uses_is_found_or_repaired(
    server, online: Stopped, tmp_path
):
    rng = random.Random(3)
    used = ("tiny/*", "tmp/experts_cache/*")
    files = [n for n in files_of(online) if any(fnmatch.fnmatch(n, p) for p in used)]
    trials = [(name, kind) for name in files for kind in range(len(DAMAGE))]
    counts = run_trials(server, online, tmp_path, trials, rng)
    assert counts["exact"] >= 10 and counts["refused"] >= 10
