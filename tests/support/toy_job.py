"""A toy job that behaves like training, and a host that runs it: `python toy_job.py ROOT CONFIG`.

It counts steps, saves the count as its checkpoint, obeys commands, and misbehaves where its config
says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from engine.errors import GladiusError, MissingError
from engine.events import (
    AnyEvent,
    Checkpoint,
    CheckpointSaved,
    EvalDone,
    JobRequest,
    LogLine,
    Pause,
    PhasePlan,
    PhaseStarted,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    StepDone,
    Stop,
    encode,
)
from engine.run.runner import run_job
from engine.run.worker import WorkerLink
from engine.workspace import Workspace

PLAN = (
    PhasePlan(index=0, name="scoring"),
    PhasePlan(index=1, name="alpha", expert="alpha", share=0.5),
    PhasePlan(index=2, name="beta", expert="beta", share=0.5),
)


class ToyConfig(msgspec.Struct, kw_only=True):
    """What the toy does."""

    steps: int = 1_000_000
    seconds: float = 0.01
    """Of a step."""
    save_every: int = 10
    print_every: int = 0
    faults: dict[int, tuple[int, str]] = {}
    """By attempt: before which step (counted in the attempt, from 1), and what goes wrong."""


class Toy:
    def __init__(self, link: WorkerLink, request: JobRequest) -> None:
        self.link = link
        self.request = request
        self.config = msgspec.json.decode(request.config, type=ToyConfig, strict=False)
        self.file = Path(request.root) / "tmp/checkpoints/toy.json"
        self.step = 0

    def run(self) -> int:
        resumed = None
        if self.request.resume and self.file.exists():
            self.step = resumed = json.loads(self.file.read_text())["step"]
        emit, request = self.link.emit, self.request
        self.fail_if_due(0)
        emit(
            RunStarted(
                step=self.step,
                run_id=request.run_id,
                job=request.job,
                attempt=request.attempt,
                pid=os.getpid(),
                phases=PLAN,
                resumed_from=resumed,
                preset="toy",
            )
        )
        emit(PhaseStarted(step=self.step, phase=1, phases=2, name="alpha", expert="alpha"))
        start = self.step
        while self.step < self.config.steps:
            for command in self.link.poll():
                if self.obey(command):
                    return 0
            self.fail_if_due(self.step - start + 1)
            self.take_step()
        self.save("final")
        emit(RunEnded(step=self.step, status="completed"))
        return 0

    def take_step(self) -> None:
        time.sleep(self.config.seconds)
        self.step += 1
        self.link.emit(
            StepDone(
                step=self.step,
                phase=1,
                loss=1000 * self.request.attempt + self.step,
                kl=1.0,
                ce=2.0,
                lr=1e-3,
                grad_norm=1.0,
                tokens=8,
                tokens_seen=8 * self.step,
                tokens_per_sec=100.0,
                step_seconds=self.config.seconds,
                training_seconds=self.request.training_seconds + 0.5,
            )
        )
        if self.step % self.config.save_every == 0:
            self.save("interval")
            self.link.emit(EvalDone(step=self.step, bits_per_byte=1 / self.step))
        if self.config.print_every and self.step % self.config.print_every == 0:
            print("the toy says", self.step)

    def save(self, reason) -> None:
        self.file.write_text(json.dumps({"step": self.step}))
        self.link.emit(
            CheckpointSaved(
                step=self.step, path=str(self.file), bytes=1, seconds=0.0, reason=reason
            )
        )

    def obey(self, command) -> bool:
        """True when the job is to end."""
        match command:
            case Pause():
                self.link.emit(RunPaused(step=self.step))
                return self.stand_still()
            case Checkpoint():
                self.save("asked")
            case Stop():
                self.save("stop")
                self.link.emit(RunEnded(step=self.step, status="stopped"))
                return True
        return False

    def stand_still(self) -> bool:
        while True:
            for command in self.link.wait(1.0):
                if isinstance(command, Resume):
                    self.link.emit(RunResumed(step=self.step))
                    return False
                if not isinstance(command, Pause) and self.obey(command):
                    return True

    def fail_if_due(self, count: int) -> None:
        at, fault = self.config.faults.get(self.request.attempt, (-1, ""))
        if count != at:
            return
        match fault:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError("the toy is\nbroken")
            case "missing":
                raise MissingError("no toy expert is ready; download one")
            case "hang":
                time.sleep(3600)
            case "load":  # one long call that can't beat itself
                with self.link.busy("loading"):
                    time.sleep(2.5)
            case "hold":
                ctypes.PyDLL(None).sleep(3600)  # never lets go of the interpreter's lock
            case "deaf":  # works on, but hears no command
                while True:
                    self.take_step()
            case "torn":
                self.link.emit(LogLine(text="x" * 4_000_000))
                time.sleep(0.02)  # the feeder thread is in the middle of it now
                os.kill(os.getpid(), signal.SIGKILL)
            case "one":
                os._exit(1)


def main(link: WorkerLink, request: JobRequest) -> int:
    return Toy(link, request).run()


def print_event(event: AnyEvent) -> None:
    os.write(1, encode(event) + b"\n")


def host(root: str, config: str, *options: str) -> int:
    try:
        return run_job(
            Workspace.find(root),
            job="train",
            config=config.encode(),
            resume="--resume" in options,
            on_event=None if "--quiet" in options else print_event,
            target="tests.support.toy_job:main",
        )
    except GladiusError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(host(*sys.argv[1:]))
