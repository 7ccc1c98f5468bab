"""Run the toy job with its runner as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from engine.errors import MissingError
from engine.events import AnyEvent, RunStarted, decode_event
from engine.run import control
from engine.run.state import read_state
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.toy_job import ToyConfig
from tests.support.waiting import until

TOY = Path(__file__).with_name("toy_job.py")


class Host:
    """A process `python toy_job.py` in its own session: a runner with a toy worker."""

    def __init__(self, ws: Workspace, config: ToyConfig, *options: str, **env: str) -> None:
        self.ws = ws
        self.output = ws.root / f"host-{time.monotonic_ns()}.out"
        self.errors = self.output.with_suffix(".err")
        with open(self.output, "wb") as output, open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(TOY),
                    str(ws.root),
                    msgspec.json.encode(config).decode(),
                    *options,
                ],
                stdout=output,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": str(REPO), **env},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self) -> list[AnyEvent]:
        """The events printed so far."""
        lines = self.output.read_bytes().split(b"\n")
        return [decode_event(line) for line in lines[:-1]]

    def worker_pid(self) -> int:
        """The pid of the newest worker that has started."""
        return [e.pid for e in self.events() if isinstance(e, RunStarted)][-1]

    def wait_for(self, kind: type, count: int = 1, seconds: float = 20.0) -> AnyEvent:
        """Wait for the count-th event of this type and return it."""
        until(lambda: sum(isinstance(e, kind) for e in self.events()) >= count, seconds)
        return [e for e in self.events() if isinstance(e, kind)][count - 1]

    def attach(self, after_seq: int | None = None) -> control.Attachment:
        deadline = time.monotonic() + 10
        while True:
            try:
                return control.attach(self.ws, "train", after_seq)
            except MissingError:
                assert time.monotonic() < deadline and self.process.poll() is None
                time.sleep(0.02)

    def end(self, seconds: float = 20.0) -> int:
        """Wait for the exit code."""
        return self.process.wait(seconds)


def status(ws: Workspace) -> str:
    return read_state(ws).status
