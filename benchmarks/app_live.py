"""The app during a training run that uses all CPU cores: time to first paint, latency of keys, CPU
use, and how much it slows the training down.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.terminal import Terminal
from benchmarks.timing import Figure, narrate, ratio
from engine.errors import GladiusError
from engine.events import Pause, Resume
from engine.run.control import attach
from engine.run.history import History
from engine.workspace import Workspace, assets_dir, expert_dir

PAINT_BOUND, KEY_BOUND = 1.5, 100.0
IDLE_BOUND, LIVE_BOUND, SLOWDOWN_BOUND = 0.02, 0.08, 1.05
PAINTS = 9
KEYS = 120
IDLE_SECONDS, LIVE_SECONDS = 20.0, 30.0
WINDOWS = 6
"""Pairs of time windows with and without a Dashboard."""
WINDOW_SECONDS = 20.0
NICE = ["nice", "-n", "10"]

_HELLO = """\
from textual.app import App
from textual.widgets import Static
class Hello(App):
    def compose(self):
        yield Static("Hello, World!")
Hello().run()
"""


def measure(folder: Path, expert: Path) -> dict[str, Figure]:
    """`expert`: a folder of SmolLM2, for a real training run."""
    figures: dict[str, Figure] = {}
    with _training(folder, expert) as bench:
        for name, measure_figure in (
            ("app_first_paint_ratio", bench.first_paint),
            ("key_repaint_p99_ms", bench.keys),
            ("dashboard_cpu_live", lambda: bench.cpu(LIVE_SECONDS, LIVE_BOUND)),
            ("dashboard_slowdown", bench.slowdown),
            ("dashboard_cpu_idle", bench.idle),
        ):
            figures[name] = measure_figure()
            narrate(f"  {name} {figures[name].value:.4f}")
    return figures


@contextmanager
def _training(folder: Path, expert: Path) -> Iterator[_Bench]:
    """A nano run that trains until the block ends."""
    ws = Workspace.find(folder / "live")
    ws.create()
    shutil.copytree(expert, expert_dir(ws, "smollm2"))
    # A socket path must be short; the user's own settings must not be used.
    runtime = tempfile.mkdtemp(prefix="gb-")
    os.environ["XDG_RUNTIME_DIR"] = runtime
    env = {**os.environ, "XDG_CONFIG_HOME": runtime, "GLADIUS_ROOT": str(ws.root)}
    env.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "gladius_tui.cli", "--no-ui", "--quiet", "train"]
    command += ["--preset", "nano", "--data", str(assets_dir() / "conversations" / "demo.jsonl")]
    command += ["--set", "data.generate=false", "--set", "data.max_teacher_tokens=4000"]
    command += ["--set", "schedule.max_steps=1000000", "--set", "schedule.capability_prompts=0"]
    with open(folder / "training.log", "wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        bench = _Bench(ws, env, process)
        bench.await_steps(5)
        yield bench
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        shutil.rmtree(runtime, ignore_errors=True)


class _Bench:
    def __init__(self, ws: Workspace, env: dict[str, str], training: subprocess.Popen) -> None:
        self._ws, self._env, self._training = ws, env, training
        self._history = History(ws.history_file)

    def await_steps(self, count: int) -> None:
        """Wait until the run has taken this many steps."""
        narrate("starting a nano run")
        while self._last_step() < count:
            if self._training.poll() is not None:
                raise GladiusError("the training run of this benchmark ended; see training.log")
            time.sleep(0.5)

    def _last_step(self) -> int:
        record = self._history.last_run("train")
        last = self._history.last(record.run_id, "StepDone") if record else None
        return last.step if last is not None else 0

    def _dashboard(self, *before: str) -> Terminal:
        """A Dashboard that is attached and has drawn its chart."""
        argv = [*before, sys.executable, "-m", "gladius_tui.cli", "dashboard"]
        terminal = Terminal(argv, self._env)
        terminal.wait_for([b"training  ", b"paused  "])
        terminal.wait_for([b"EMA"])
        time.sleep(2.0)
        return terminal

    def first_paint(self) -> Figure:
        """Time from start to first paint, relative to a minimal Textual program."""
        hello = self._ws.root / "hello.py"
        hello.write_text(_HELLO)
        app = [sys.executable, "-m", "gladius_tui.cli", "dashboard"]
        programs = {"app": (app, b"Dashboard"), "hello": ([sys.executable, str(hello)], b"Hello,")}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for number in range(PAINTS + 1):
            for name in sorted(programs, reverse=bool(number % 2)):
                argv, text = programs[name]
                terminal = Terminal(argv, self._env)
                painted = terminal.wait_for([text]) - terminal.started
                terminal.close()
                if number:  # the first start reads files that are cached later
                    seconds[name].append(painted)
        return ratio(seconds["app"], seconds["hello"], PAINT_BOUND)

    def keys(self) -> Figure:
        """Milliseconds from a key to its effect on the terminal, 99th percentile: the chart's scale
        and average, switching to another screen and back."""
        terminal = self._dashboard()
        presses = [
            (b"l", [b"log "]),
            (b"e", [b"EMA", b"raw"]),
            (b"3", [b"[3 Train]"]),
            (b"4", [b"[4 Dashboard]"]),
            (b"l", [b"lin "]),
        ]
        latencies: dict[bytes, list[float]] = {}
        try:
            for number in range(KEYS + len(presses)):
                key, texts = presses[number % len(presses)]
                position = terminal.press(key)
                pressed = time.perf_counter()
                latency = (terminal.wait_for(texts, position, 10.0) - pressed) * 1000
                if number >= len(presses):  # a screen is created when it is first shown
                    latencies.setdefault(key, []).append(latency)
                time.sleep(0.15)
        finally:
            terminal.close()
        values = sorted(latency for part in latencies.values() for latency in part)
        detail = {
            "median": statistics.median(values),
            "max": values[-1],
            "count": len(values),
            **{f"median {k.decode()}": statistics.median(v) for k, v in latencies.items()},
        }
        return Figure(values[min(len(values) - 1, int(0.99 * len(values)))], KEY_BOUND, detail)

    def cpu(self, seconds: float, bound: float) -> Figure:
        """CPU time of an attached Dashboard, as a share of one core."""
        terminal = self._dashboard(*NICE)
        try:
            process = psutil.Process(terminal.process.pid)
            before, began = process.cpu_times(), time.perf_counter()
            time.sleep(seconds)
            after, elapsed = process.cpu_times(), time.perf_counter() - began
        finally:
            terminal.close()
        used = after.user + after.system - before.user - before.system
        return Figure(used / elapsed, bound, {"seconds": elapsed})

    def idle(self) -> Figure:
        """`cpu` while the run is paused."""
        with attach(self._ws) as attachment:
            attachment.send(Pause())
            figure = self.cpu(IDLE_SECONDS, IDLE_BOUND)
            attachment.send(Resume())
        return figure

    def slowdown(self) -> Figure:
        """Duration of a training step with an attached Dashboard, relative to none; alternating."""
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(WINDOWS):
            for attached in sorted(seconds, reverse=bool(number % 2)):
                terminal = self._dashboard(*NICE) if attached else None
                time.sleep(0.0 if attached else 2.0)
                seconds[attached].append(self._step_seconds())
                if terminal is not None:
                    terminal.close()
        return ratio(seconds[True], seconds[False], SLOWDOWN_BOUND)

    def _step_seconds(self) -> float:
        """Median duration of the steps in the next time window."""
        record = self._history.last_run("train")
        assert record is not None
        first = self._last_step()
        time.sleep(WINDOW_SECONDS)
        steps = self._history.tail(record.run_id, "StepDone", 2000)
        return statistics.median(getattr(s, "step_seconds", 0.0) for s in steps if s.step > first)
