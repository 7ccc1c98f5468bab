"""Saves checkpoints in processes that are killed, or run out of disk, at every place in turn.

Run by test_checkpoint.py as `python checkpoint_faults.py kill|full|memory FOLDER`; torch is loaded
once and every trial is a fork. Exits 0 when all of them kept the contract, with a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from engine.checkpoint.errors import OutOfSpace
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.train_state import TrainState

CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")
CONFIG = {"config_json": b'{"seed": 1}', "config_digest": "d1"}


def make_state(step: int) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(40, 30, generator=generator)
    return TrainState(
        step=step,
        tokens_seen=step * 1000,
        model_state={"embed": weight, "head": weight, "norm": torch.randn(30, generator=generator)},
        optimizer={"exp_avg.embed": torch.randn(40, 30, generator=generator)},
        scalars={"cursor": step, "ema": step / 3},
        rng={"cpu": generator.get_state()},
    )


def assert_same(loaded: TrainState, expected: TrainState, weights_only: bool = False) -> None:
    for ours, theirs in (
        (loaded.model_state, expected.model_state),
        *([] if weights_only else [(loaded.optimizer, expected.optimizer)]),
        *([] if weights_only else [(loaded.rng, expected.rng)]),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert loaded.tokens_seen == expected.tokens_seen
    assert weights_only or loaded.scalars == expected.scalars


def in_a_fork(action: Callable[[], None]) -> int:
    """Exit code of a forked process that did `action`: 0, 1 for an exception, -9 when killed."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(number: int) -> None:
    """From now on, the process is killed at its `number`-th call that changes the disk."""
    calls = 0

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == number:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, call)

    for name in CALLS:
        wrap(name)


def former_run(folder: Path) -> CheckpointStore:
    """Steps 1 (protected), 2 and 3, and the best weights of step 2."""
    store = CheckpointStore(folder, keep=2)
    store.save(make_state(1), **CONFIG, protect=True)
    store.save(make_state(2), **CONFIG)
    store.save_best(make_state(2), **CONFIG, score=2.0)
    store.save(make_state(3), **CONFIG)
    return store


def save_the_next(store: CheckpointStore) -> None:
    """Step 4, protected in place of 1, which is then one too many as 2 is; and the best weights."""
    store.save(make_state(4), **CONFIG, protect=True)
    store.save_best(make_state(4), **CONFIG, score=1.0)


def check_after_a_crash(folder: Path) -> None:
    """What a restart must find, and that it can do again what was not done."""
    store = CheckpointStore(folder, keep=2)
    store.remove_temporaries()
    assert not list(folder.glob(".tmp-*"))
    rejected: list[object] = []
    found = store.load_newest(lambda *what: rejected.append(what))
    assert found is not None and not rejected, rejected
    assert found[0].step in (3, 4)
    assert_same(found[0], make_state(found[0].step))
    assert any(info.protected for info in store.list())
    best, _ = store.load("best")
    assert best.step in (2, 4)
    assert_same(best, make_state(best.step), weights_only=True)
    save_the_next(store)
    check_complete(folder)


def check_complete(folder: Path) -> None:
    store = CheckpointStore(folder, keep=2)
    best, *steps = sorted(p.name for p in folder.iterdir())
    # Done again after a kill, the best weights lie beside their first try for a moment.
    assert best in ("best-000000004", "best-000000004-2")
    assert steps == ["step-000000003", "step-000000004"]
    found = store.load_newest(lambda *what: sys.exit(f"rejected {what}"))
    assert found is not None
    assert_same(found[0], make_state(4))
    assert_same(store.load("best")[0], make_state(4), weights_only=True)


def kill_everywhere(root: Path) -> int:
    """Kills one save after the other, each a call later, until one comes through."""
    former_run(root / "former")
    number = 0
    while True:
        number += 1
        folder = root / f"trial-{number}"
        shutil.copytree(root / "former", folder)

        def save(folder: Path = folder, number: int = number) -> None:
            die_at(number)
            save_the_next(CheckpointStore(folder, keep=2))

        code = in_a_fork(save)
        assert code in (0, -signal.SIGKILL), f"call {number}: exit code {code}"
        try:
            check_complete(folder) if code == 0 else check_after_a_crash(folder)
        except BaseException as error:
            error.add_note(f"after a kill at call {number}")
            raise
        shutil.rmtree(folder)
        if code == 0:
            return number - 1


def fill_the_disk(root: Path) -> int:
    """Saves under limits on a file's size, as on a disk that runs full within each file."""
    folder = root / "full"
    store = former_run(folder)
    entries = sorted(folder.rglob("*"))
    largest = max(p.stat().st_size for p in entries if p.is_file())
    limits = [0, 1, 100, 500, largest // 2, largest - 1]
    for limit in limits:

        def save(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            for attempt in (
                lambda: store.save(make_state(4), **CONFIG),
                lambda: store.save_best(make_state(4), **CONFIG, score=1.0),
            ):
                try:
                    attempt()
                except OutOfSpace as error:
                    assert "make room" in str(error)
                else:
                    # The weights alone may fit.
                    assert attempt is not store.save and limit > largest // 2

        def check() -> None:
            found = store.load_newest(lambda *what: sys.exit(f"rejected {what}"))
            assert found is not None
            assert_same(found[0], make_state(3))

        assert in_a_fork(save) == 0, f"limit {limit}"
        assert not list(folder.glob(".tmp-*")), f"leftovers under limit {limit}"
        assert [p for p in sorted(folder.rglob("*")) if "best" not in str(p)] == [
            p for p in entries if "best" not in str(p)
        ]
        assert in_a_fork(check) == 0, f"limit {limit}"
    save_the_next(store)
    check_complete(folder)
    return len(limits)


def measure_memory(root: Path) -> dict[str, float]:
    """MiB that a save of 128 MiB and the reading of it add to the process."""
    store = CheckpointStore(root / "memory")
    state = TrainState(1, 1, {f"w{n}": torch.full((8 << 20,), float(n)) for n in range(4)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store.save(state, **CONFIG)
    saving = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    del state
    before = anonymous_mib()
    loaded, _ = store.load(1)
    assert sum(t.double().sum().item() for t in loaded.model_state.values()) == (8 << 20) * 6
    return {"saving": saving, "loading": anonymous_mib() - before}


def anonymous_mib() -> float:
    """Memory of this process that no file stands behind."""
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("Anonymous"))


def main() -> None:
    torch.set_num_threads(1)
    what, root = sys.argv[1], Path(sys.argv[2])
    trials = {"kill": kill_everywhere, "full": fill_the_disk, "memory": measure_memory}
    print(json.dumps(trials[what](root)))


if __name__ == "__main__":
    main()
