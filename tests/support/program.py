"""Run `./gladius_train` as a process on a temporary root and read its events and checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

from engine.events import AnyEvent, EvalDone, RunStarted, StepDone, decode_event
from engine.run.history import History
from engine.run.state import read_state
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.waiting import until

LAUNCHER = REPO / "gladius_train"

SMALL = {
    "data.generate": "false",
    "student.hidden_size": 32,
    "student.intermediate_size": 48,
    "student.num_hidden_layers": 2,
    "student.num_attention_heads": 2,
    "student.num_key_value_heads": 1,
    "student.vocab_size": 320,
    "student.max_position_embeddings": 128,
    "loss.alpha": 0.5,
    "loss.temperature": 2.0,
    "optimizer.max_seq_len": 128,
    "optimizer.global_batch_size": 4,
    "optimizer.micro_batch_size": 2,
    "optimizer.lr": 0.002,
    "device.threads": 1,
    "schedule.log_interval": 5,
    "schedule.eval_interval": 10,
    "schedule.capability_prompts": 0,
    "schedule.sample_tokens": 6,
}
"""Settings of a student with steps of milliseconds and two micro-batches."""

LONG = 100_000
"""max_steps of a run that the test stops."""


class Running:
    """A process of the program with `--json`, in its own session."""

    def __init__(self, root: Root, arguments: list[str]) -> None:
        self.output = root.path / f"out-{time.monotonic_ns()}.jsonl"
        self.errors = self.output.with_suffix(".err")
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                root.command("--no-ui", "--json", *arguments),
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self) -> list[AnyEvent]:
        """The events printed so far."""
        return [decode_event(line) for line in self.output.read_bytes().split(b"\n")[:-1]]

    def steps(self) -> list[int]:
        return [e.step for e in self.events() if isinstance(e, StepDone)]

    def worker_pid(self) -> int:
        """The pid of the newest worker that has started."""
        return [e.pid for e in self.events() if isinstance(e, RunStarted)][-1]

    def reach(self, step: int) -> Running:
        """Wait until this step is printed."""

        def is_reached() -> bool:
            assert self.process.poll() is None, self.errors.read_text()
            return any(n >= step for n in self.steps())

        until(is_reached)
        return self

    def end(self, number: int | None = None) -> int:
        """Send this signal, if given, and wait for the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(90)

    def kill(self) -> None:
        """Kill the process and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


class Root:
    """A root with the registered expert `tiny`, and the path of a training text."""

    def __init__(self, path: Path, expert: Path, text: Path, register: bool = True) -> None:
        """register: write the root's gladius.toml."""
        self.path = path
        self.text = text
        self.ws = Workspace.find(path)
        path.mkdir(parents=True, exist_ok=True)
        if register:
            (path / "gladius.toml").write_text(
                f'[experts.tiny]\ntitle = "Tiny"\nrepo = "{expert}"\nend_tokens = ["<|im_end|>"]\n'
            )
        self._started: list[Running] = []

    def command(self, *arguments: str) -> list[str]:
        return [str(LAUNCHER), "--root", str(self.path), *arguments]

    def training(self, max_steps: int | None = LONG, **fields: object) -> list[str]:
        """Arguments of `train` with a small student; fields as section__field=value."""
        values = {**SMALL, **{name.replace("__", "."): value for name, value in fields.items()}}
        if max_steps is not None:
            values["schedule.max_steps"] = max_steps
        words = ["train", "--preset", "nano", "--experts", "tiny", "--data", str(self.text)]
        return words + [word for name, value in values.items() for word in _set(name, value)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120)

    def start(self, *arguments: str) -> Running:
        self._started.append(Running(self, list(arguments)))
        return self._started[-1]

    def kill_all(self) -> None:
        for running in self._started:
            running.kill()

    def error_of(self, code: int, *arguments: str) -> str:
        """The error line of a command that must exit with `code` and print exactly one."""
        result = self.run(*arguments)
        assert result.returncode == code, (result.returncode, result.stderr)
        assert "Traceback" not in result.stderr
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        return lines[0]

    def history(self) -> list[AnyEvent]:
        """All events of the newest training run, over all its attempts."""
        history = History(self.ws.history_file)
        try:
            record = history.last_run("train")
            assert record is not None
            return history.events(record.run_id, limit=1_000_000)
        finally:
            history.close()

    def status(self) -> str:
        return read_state(self.ws).status

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.ws.checkpoints_dir.glob("step-*"))

    def checkpoint(self, step: int) -> Path:
        return self.ws.checkpoints_dir / f"step-{step:09d}"

    def trace(self, last_step: int) -> dict[str, object]:
        """What must be equal in two runs: the loss of every step (the last time it was taken),
        every evaluation, and digests of the last checkpoint."""
        losses: dict[int, str] = {}
        evaluations: dict[int, str] = {}
        for event in self.history():
            if isinstance(event, StepDone):
                assert event.loss is not None
                losses[event.step] = event.loss.hex()
            elif isinstance(event, EvalDone):
                evaluations[event.step] = event.bits_per_byte.hex()
        digests = {
            name: hashlib.sha256((self.checkpoint(last_step) / name).read_bytes()).hexdigest()
            for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors")
        }
        return {"losses": losses, "evaluations": evaluations, **digests}


def _set(name: str, value: object) -> tuple[str, str]:
    return "--set", f"{name}={value}"
