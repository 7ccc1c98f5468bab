"""kill -9 of worker, runner and both, at every boundary of a durable write and at random instants:
the run ends with the weights and the loss history of an undisturbed one, bit for bit.

`FAULT_SEED` repeats a run of these tests.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress

import psutil
import pytest

from engine.workspace import FAILPOINT
from tests.support.fork_server import ForkedRunning, ForkServer
from tests.support.program import Root
from tests.support.waiting import gone, until

pytestmark = pytest.mark.timeout(900)

STEPS = 48
FIELDS = {"checkpoint__interval_steps": 4, "schedule__eval_interval": 12}
KILLS = 200

NEW_FILES = (
    "model.safetensors",
    "optimizer.safetensors",
    "rng.safetensors",
    "state.json",
    "run_config.json",
    "seal.json",
    "journal.jsonl",
    "events.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
    "manifest.json",
)
"""Files of a checkpoint."""
REPLACED_FILES = ("config.json", "held_out.json", "training_state.json", "train.lock")
SAVE = [f"{name}/{at}" for name in NEW_FILES for at in ("opened", "half", "written", "synced")]
SAVE += ["publish/synced", "publish/renamed", "publish/durable", "remove/begun", "remove/renamed"]
REPLACE = [
    f"{name}/{at}"
    for name in REPLACED_FILES
    for at in ("opened", "half", "written", "synced", "renamed", "durable")
]
SEAL = [f"seal.json/{at}" for at in ("opened", "half", "written", "synced", "renamed", "durable")]
"""Only the first start of a run writes its seal."""
JOURNAL = [f"journal.jsonl/{at}" for at in ("opened", "half", "written", "synced")]


@pytest.fixture(scope="module")
def undisturbed(make_root, server: ForkServer) -> dict[str, object]:
    root: Root = make_root("undisturbed")
    running = ForkedRunning(server, root, root.training(STEPS, **FIELDS))
    assert running.process.wait(90) == 0, running.errors.read_text()
    return result_of(root)


def result_of(root: Root) -> dict[str, object]:
    """Losses, evaluations and digests, and every point of the charts' loss curve."""
    with closing(sqlite3.connect(root.ws.history_file)) as db:
        points = db.execute(
            "SELECT metric, step, value FROM points JOIN series ON series = id"
            " WHERE metric IN ('loss', 'kl', 'lr', 'bits_per_byte') ORDER BY metric, step"
        ).fetchall()
    steps = [step for metric, step, _ in points if metric == "loss"]
    assert steps == list(range(1, STEPS + 1)), "a step is missing from the loss curve, or is twice"
    return {"points": points, **root.trace(STEPS)}


def disturbed(
    server: ForkServer, root: Root, rng: random.Random, planned: list[str], at_random: int
) -> tuple[int, list[str]]:
    """Train to the end; the number of kills: at the planned boundaries, one after the other, then
    `at_random` ones, and the boundaries that the run did not reach any more."""
    plan = root.path / "failpoints"
    # A runner writes its lock when it starts, and the death of a worker starts no runner.
    planned = sorted(planned, key=lambda entry: not entry.startswith("train.lock"))
    plan.write_text("".join(f"{entry}\n" for entry in planned))
    kills = 0
    while True:
        # The same command resumes the run, also when it was killed before it was stored.
        running = ForkedRunning(
            server, root, root.training(STEPS, **FIELDS), **{FAILPOINT: f"@{plan}"}
        )
        while running.process.poll() is None:
            if plan.read_text() or not at_random:
                time.sleep(0.02)
                continue
            time.sleep(rng.uniform(0.0, 0.7))
            if kill(running, rng.choice(("worker", "runner", "both"))):
                kills, at_random = kills + 1, at_random - 1
        errors = running.errors.read_text()
        assert "Traceback" not in errors, errors
        if running.process.wait() == 0:
            break
        until(lambda: not workers(running), 20)  # noqa: B023
        if root.status() == "completed":
            break  # killed after its end: the same command would begin another run
    left = plan.read_text().splitlines()
    return kills + len(planned) - len(left), left


def kill(running: ForkedRunning, which: str) -> bool:
    """Whether the process was there to be killed."""
    found = workers(running)
    if which != "worker":
        if running.process.poll() is not None:
            return False
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
    if which != "runner":
        if not found:
            return which == "both"
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    until(lambda: which == "worker" or all(map(gone, found)), 20)
    return True


def workers(running: ForkedRunning) -> list[int]:
    """The worker processes of the runner's session, also after its end."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            of_session = process.pid != running.pid and os.getsid(process.pid) == running.pid
            if of_session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def seeded() -> random.Random:
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(10**6))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)


def test_a_few_kills_change_nothing(server, undisturbed, root: Root):
    rng = seeded()
    planned = [rng.choice(SEAL), *rng.sample(SAVE, 3), rng.choice(REPLACE)]
    planned.append(f"{rng.choice(SAVE)}:1:both")
    kills, _ = disturbed(server, root, rng, planned, 4)
    assert kills >= 5
    assert result_of(root) == undisturbed


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(server, undisturbed, make_root):
    """Each boundary once, some with the runner too; the others at random instants."""
    rng = seeded()
    entries = [*SAVE, *REPLACE, *JOURNAL, *(f"{name}:1:both" for name in rng.sample(SAVE, 16))]
    rng.shuffle(entries)
    first = list(SEAL)
    not_reached: dict[str, int] = {}
    kills = roots = 0
    while entries or first or kills < KILLS:
        planned = first[:1] + entries[:8]
        del first[:1], entries[:8]
        root: Root = make_root(f"killed-{roots}")
        found, left = disturbed(server, root, rng, planned, 6)
        assert result_of(root) == undisturbed, planned
        shutil.rmtree(root.path)
        kills, roots = kills + found, roots + 1
        for entry in left[:1]:
            not_reached[entry] = not_reached.get(entry, 0) + 1
            assert not_reached[entry] < 4, f"{entry} is not a boundary of a run"
        # What a run was too short for comes first in another one.
        entries = left + entries
    print(f"{kills} kills in {roots} runs")
