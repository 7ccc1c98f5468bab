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
    CheckpointSaved,
    EvalDone,
    JobRequest,
    LogLine,
    PhasePlan,
    PhaseStarted,
    StepDone,
    encode,
)
from engine.run.job import JobContext, JobStopped, run_started
from engine.run.runner import run_job
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
    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        ctx.attach_trainer(save=lambda: self.save("asked"), step=lambda: self.step)
        self.request = request
        self.config = msgspec.json.decode(request.config, type=ToyConfig, strict=False)
        self.file = Path(request.root) / "tmp/checkpoints/toy.json"
        self.step = 0

    def run(self) -> int:
        resumed = None
        if self.request.resume and self.file.exists():
            self.step = resumed = json.loads(self.file.read_text())["step"]
        self.fail_if_due(0)
        self.ctx.emit(
            run_started(
                self.request, step=self.step, phases=PLAN, resumed_from=resumed, preset="toy"
            )
        )
        self.ctx.emit(PhaseStarted(step=self.step, phase=1, phases=2, name="alpha", expert="alpha"))
        start = self.step
        while self.step < self.config.steps and not self.ctx.finish_requested:
            try:
                self.ctx.checkpoint_point("counting")
            except JobStopped:
                self.save("stop")
                return self.ctx.ended("stopped", step=self.step)
            self.fail_if_due(self.step - start + 1)
            self.take_step()
        self.save("final")
        return self.ctx.ended("completed", step=self.step)

    def take_step(self) -> None:
        time.sleep(self.config.seconds)
        self.step += 1
        self.ctx.emit(
            StepDone(
                step=self.step,
                phase=1,
                expert="alpha",
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
            self.ctx.emit(EvalDone(step=self.step, bits_per_byte=1 / self.step))
        if self.config.print_every and self.step % self.config.print_every == 0:
            print("the toy says", self.step)

    def save(self, reason) -> None:
        self.file.write_text(json.dumps({"step": self.step}))
        self.ctx.emit(
            CheckpointSaved(
                step=self.step, path=str(self.file), bytes=1, seconds=0.0, reason=reason
            )
        )

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
                with self.ctx.busy("loading"):
                    time.sleep(2.5)
            case "hold":
                ctypes.PyDLL(None).sleep(3600)  # never lets go of the interpreter's lock
            case "deaf":  # keeps working, but never reads a command
                while True:
                    self.take_step()
            case "torn":
                self.ctx.emit(LogLine(text="x" * 4_000_000))
                time.sleep(0.02)  # the feeder thread is in the middle of it now
                os.kill(os.getpid(), signal.SIGKILL)
            case "one":
                os._exit(1)


def main(ctx: JobContext, request: JobRequest) -> int:
    return Toy(ctx, request).run()


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
