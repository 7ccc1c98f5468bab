"""Train for a long time while viewers come and go, and check that nothing grows: `make soak`.

A tiny student trains with pauses, checkpoints and evaluations; printed viewers and the app attach
and leave; exports run side by side. Memory, open files, threads and semaphores of runner and
worker and the disk are sampled. Prints one JSON object, and ends with 1 if something grew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from benchmarks.terminal import Terminal
from benchmarks.timing import narrate
from engine.errors import GladiusError
from engine.events import Checkpoint, Pause, Resume, RunStarted, Stop
from engine.run.control import attach
from engine.run.history import History
from engine.run.lock import lock_owner
from engine.run.log import MAX_BYTES
from engine.workspace import Workspace, tree_bytes

SAMPLE_SECONDS = 5.0
_WARM_UP = 0.25
"""Share of the time that does not count: libraries load, caches fill."""
_HISTORY_BYTES_PER_STEP = 1000.0
_LOG_PARTS = 5
_SLACK = {"rss": 24 << 20, "fds": 3, "threads": 2, "disk": 4 << 20, "semaphores": 0}
"""How far the median of the last third may lie above that of the first."""


class Sample(msgspec.Struct, frozen=True):
    """What the processes and the disk hold at one time; bytes, counts."""

    seconds: float
    step: int
    runner_rss: int
    worker_rss: int
    runner_fds: int
    worker_fds: int
    runner_threads: int
    worker_threads: int
    disk: int
    """Of the root, without the history and the logs."""
    history: int
    logs: int
    semaphores: int


class Soak:
    """A run on a root of its own, and what is done beside it."""

    def __init__(self, ws: Workspace, env: dict[str, str]) -> None:
        self._ws, self._env = ws, env
        self._began = time.monotonic()
        self._history = History(ws.history_file)
        self.samples: list[Sample] = []
        self.counts: dict[str, int] = {}
        self.problems: list[str] = []
        self.training = self._start("train", *_training_words(ws))
        self._wait_for_steps()

    def _start(self, *words: str, output: int | None = subprocess.DEVNULL) -> subprocess.Popen:
        command = [sys.executable, "-m", "gladius_tui.cli", "--root", str(self._ws.root)]
        log = open(self._ws.root / "soak.err", "ab")  # noqa: SIM115 (inherited)
        with log:
            return subprocess.Popen(
                [*command, "--no-ui", "--quiet", *words],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for_steps(self) -> None:
        deadline = time.monotonic() + 300
        while self._last_step() < 20:
            if self.training.poll() is not None or time.monotonic() > deadline:
                text = (self._ws.root / "soak.err").read_text(errors="replace")
                raise GladiusError(f"the run of the soak did not start: {text[-500:]}")
            time.sleep(0.5)
        record = self._history.last_run("train")
        assert record is not None
        started = self._history.last(record.run_id, "RunStarted")
        assert isinstance(started, RunStarted)
        self._runner = psutil.Process(self.training.pid)
        self._worker = psutil.Process(started.pid)

    def _last_step(self) -> int:
        record = self._history.last_run("train")
        last = self._history.last(record.run_id, "StepDone") if record else None
        return last.step if last is not None else 0

    def run(self, seconds: float) -> None:
        """Do everything in turn until `seconds` have passed, then stop the run."""
        actions = (
            ("pauses", self._pause),
            ("checkpoints", self._checkpoint),
            ("followers", self._follow),
            ("apps", self._open_app),
            ("statuses", self._status),
            ("exports", self._export),
        )
        turn = 0
        while time.monotonic() - self._began < seconds:
            name, act = actions[turn % len(actions)]
            turn += 1
            try:
                act()
                self.counts[name] = self.counts.get(name, 0) + 1
            except (GladiusError, OSError, subprocess.SubprocessError, AssertionError) as error:
                self.problems.append(f"{name}: {type(error).__name__}: {error}")
            self._sample_for(SAMPLE_SECONDS)
            if self.training.poll() is not None:
                self.problems.append(f"the run ended with {self.training.returncode}")
                return
        with attach(self._ws) as attachment:
            attachment.send(Stop())
        if (code := self.training.wait(60)) != 0:
            self.problems.append(f"the run ended with {code}")

    def _sample_for(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, SAMPLE_SECONDS))
            with contextlib.suppress(psutil.Error):
                self.samples.append(self._sample())

    def _sample(self) -> Sample:
        logs = sum(p.stat().st_size for p in self._ws.logs_dir.glob("training_*.log"))
        history = sum(p.stat().st_size for p in self._ws.logs_dir.glob("history.sqlite*"))
        return Sample(
            seconds=time.monotonic() - self._began,
            step=self._last_step(),
            runner_rss=self._runner.memory_info().rss,
            worker_rss=self._worker.memory_info().rss,
            runner_fds=self._runner.num_fds(),
            worker_fds=self._worker.num_fds(),
            runner_threads=self._runner.num_threads(),
            worker_threads=self._worker.num_threads(),
            disk=tree_bytes(self._ws.root) - history - logs,
            history=history,
            logs=logs,
            semaphores=sum(map(_semaphores, (self._runner, self._worker))),
        )

    def _pause(self) -> None:
        with attach(self._ws) as attachment:
            attachment.send(Pause(), timeout=60)
            time.sleep(0.5)
            attachment.send(Resume(), timeout=60)

    def _checkpoint(self) -> None:
        with attach(self._ws) as attachment:
            attachment.send(Checkpoint(), timeout=120)

    def _follow(self) -> None:
        """A viewer that reads, one that never reads, and one that is killed."""
        viewers = [self._start("dashboard", "--follow") for _ in range(2)]
        viewers.append(self._start("dashboard", "--follow", output=subprocess.PIPE))
        time.sleep(4.0)
        for viewer, number in zip(
            viewers, (signal.SIGINT, signal.SIGKILL, signal.SIGKILL), strict=True
        ):
            viewer.send_signal(number)
            viewer.wait(20)
            if viewer.stdout is not None:
                viewer.stdout.close()

    def _open_app(self) -> None:
        argv = [sys.executable, "-m", "gladius_tui.cli", "--root", str(self._ws.root), "dashboard"]
        terminal = Terminal(argv, self._env)
        try:
            terminal.wait_for([b"Dashboard"], seconds=30.0)
            for key in (b"1", b"5", b"4"):
                terminal.press(key)
                time.sleep(1.0)
        finally:
            terminal.close()

    def _status(self) -> None:
        assert self._start("status").wait(30) == 0, "status failed"

    def _export(self) -> None:
        code = self._start("export", "--checkpoint", "latest", "--type", "f16").wait(300)
        assert code == 0, f"export ended with {code}"


def _semaphores(process: psutil.Process) -> int:
    """Named semaphores that a process has mapped: they stay in /dev/shm when all are killed."""
    maps = Path(f"/proc/{process.pid}/maps")
    return maps.read_text().count("/dev/shm/sem.") if maps.exists() else 0


def _training_words(ws: Workspace) -> list[str]:
    from tests.support.program import SMALL

    values = {
        **SMALL,
        "schedule.max_steps": 100_000_000,
        "schedule.eval_interval": 500,
        "checkpoint.interval_steps": 400,
    }
    words = ["--preset", "nano", "--experts", "tiny", "--data", str(ws.root / "text.jsonl")]
    return words + [word for name, v in values.items() for word in ("--set", f"{name}={v}")]


def verdict(samples: list[Sample]) -> tuple[dict[str, Any], list[str]]:
    """The figures of the first and the last third after the warm-up, and what grew."""
    warm = samples[int(len(samples) * _WARM_UP) :]
    if len(warm) < 6:
        return {}, ["too few samples; run it for more minutes"]
    third = len(warm) // 3
    figures: dict[str, Any] = {}
    grown: list[str] = []
    for name in Sample.__struct_fields__:
        if name in ("seconds", "step"):
            continue
        first = statistics.median(getattr(sample, name) for sample in warm[:third])
        last = statistics.median(getattr(sample, name) for sample in warm[-third:])
        figures[name] = {"first": first, "last": last}
        slack = _SLACK.get(name.rpartition("_")[2])
        if slack is not None and last > first + slack:
            grown.append(f"{name} grew from {first:,.0f} to {last:,.0f}")
    steps = samples[-1].step
    per_step = samples[-1].history / max(1, steps)
    figures |= {"steps": steps, "history_bytes_per_step": round(per_step, 1)}
    if per_step > _HISTORY_BYTES_PER_STEP:
        grown.append(f"the history has {per_step:,.0f} bytes a step")
    if samples[-1].logs > MAX_BYTES * _LOG_PARTS * 1.1:
        grown.append(f"the logs have {samples[-1].logs:,} bytes")
    return figures, grown


@contextlib.contextmanager
def _root() -> Iterator[tuple[Workspace, dict[str, str]]]:
    from tests.support.small_run import make_root

    with tempfile.TemporaryDirectory(prefix="gladius-soak-") as folder:
        runtime = tempfile.mkdtemp(prefix="gb-", dir=folder)
        os.environ["XDG_RUNTIME_DIR"] = runtime
        (Path(folder) / "root").mkdir()
        ws = make_root(Path(folder) / "root")
        yield ws, {**os.environ, "XDG_CONFIG_HOME": runtime, "OMP_NUM_THREADS": "1"}


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    with _root() as (ws, env):
        narrate(f"training for {minutes:g} minutes in {ws.root}")
        soak = Soak(ws, env)
        try:
            soak.run(minutes * 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(soak.training.pid, signal.SIGKILL)
        figures, grown = verdict(soak.samples)
        time.sleep(1.0)
        left = [name for name in ("train", "export") if lock_owner(ws, name) is not None]
        problems = soak.problems + grown + [f"{name} still runs" for name in left]
        result = {
            "minutes": minutes,
            "samples": len(soak.samples),
            "done": soak.counts,
            "figures": figures,
            "problems": problems,
        }
        print(json.dumps(result, indent=2))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
