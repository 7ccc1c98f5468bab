"""Try an expert in a child process with limits of time and memory: read its config, tokenizer and
chat template, and let it score and write a few tokens.

The files come from others. A template can loop for ever, a config can ask for millions of layers:
in the child this costs the limit and gives one line.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec
from engine.hardware import available_ram

TARGET = "engine.distill.teacher.trial:try_expert"
"""Function of the child, `try_expert(request, report)`; it imports torch."""
_POLL_SECONDS = 0.1
_START_SECONDS = 120.0
"""Time for the child to start and to import torch on a busy machine."""
_MAX_MESSAGE = 1 << 20
_GIB = 1 << 30


class TrialRequest(msgspec.Struct, frozen=True):
    """What the child tries."""

    spec: ExpertSpec
    path: str
    run_model: bool
    """Whether to load the weights, score a conversation and write tokens."""
    weight_bytes: int = 0
    """Size of its weights in memory, about."""


class Stage(msgspec.Struct, frozen=True):
    """The child begins a stage: its name and limits.

    Attributes:
        doing: what is tried, as "its chat template".
        seconds: CPU time and, several times as much, wall-clock time.
        memory: address space beyond what the process has, bytes.
    """

    doing: str
    seconds: float
    memory: int


class _Message(msgspec.Struct, frozen=True):
    """What the child reports."""

    kind: Literal["stage", "note", "refused", "done"]
    text: str = ""
    seconds: float = 0.0


Report = Callable[[Stage | str], None]
"""Called in the child with each stage before it begins, and with notes for the user."""


def run_trial(
    spec: ExpertSpec,
    path: Path,
    *,
    run_model: bool,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> list[str]:
    """Try the expert in a child process; returns notes for the user.

    run_model: also load its weights, score a conversation and write eight tokens. They are not
    loaded where they do not fit into the free memory.
    heartbeat: called several times a second with what is done; may raise to stop.

    Raises GladiusError with one line if the expert can't be used, or exceeds a limit.
    """
    notes = []
    size = _weight_bytes(path)
    if run_model and size * 1.2 > available_ram():
        run_model = False
        notes.append("its weights do not fit into the free memory: they were not tried")
    request = TrialRequest(spec, str(path), run_model, size)
    child = _Child(request, heartbeat)
    try:
        return notes + child.wait()
    finally:
        child.kill()


def _weight_bytes(path: Path) -> int:
    """About the bytes of the weights in memory."""
    if path.is_file():
        return 5 * path.stat().st_size  # a GGUF file is dequantised
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


class _Child:
    """A running trial, as its parent sees it."""

    def __init__(self, request: TrialRequest, heartbeat: Callable[[str], None]) -> None:
        self._name = request.spec.name
        self._heartbeat = heartbeat
        # The server imports torch once; its children are copies of it.
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([TARGET.partition(":")[0]])
        self._reading, writing = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_main, args=(writing, msgspec.json.encode(request)), daemon=True
        )
        heartbeat(f"trying {self._name}")
        self._process.start()
        writing.close()

    def wait(self) -> list[str]:
        """Follow the child to its end; returns its notes. Raises GladiusError."""
        notes: list[str] = []
        stage, limit, waited = "its files", _START_SECONDS, 0.0
        while True:
            message = self._receive()
            if message is None and self._process.is_alive() and waited < limit:
                # Ticks are counted, not clock time: the job may be paused or suspended.
                waited += _POLL_SECONDS
                self._heartbeat(f"trying {self._name}: {stage}")
                continue
            match message:
                case _Message(kind="stage"):
                    stage, limit, waited = message.text, 5 * message.seconds + 10, 0.0
                case _Message(kind="note"):
                    notes.append(message.text)
                case _Message(kind="done"):
                    return notes
                case _Message(kind="refused"):
                    raise GladiusError(message.text)
                case None:
                    raise GladiusError(self._ending(stage))

    def _receive(self) -> _Message | None:
        """The next message; None if there is none within a tick, or no more."""
        try:
            if not self._reading.poll(_POLL_SECONDS):
                return None
            return msgspec.json.decode(self._reading.recv_bytes(_MAX_MESSAGE), type=_Message)
        except (EOFError, OSError, msgspec.MsgspecError):
            self._process.join(1.0)
            return None

    def _ending(self, stage: str) -> str:
        """Why a child without a result is not waited for any longer."""
        if self._process.is_alive() or self._process.exitcode == -signal.SIGXCPU:
            why = "takes too long"
        elif self._process.exitcode in (-signal.SIGKILL, -signal.SIGABRT):
            why = "needs too much memory"
        else:
            why = f"ends the process that reads it (exit code {self._process.exitcode})"
        return f"{self._name}: {stage} {why}; choose another model or correct its files"

    def kill(self) -> None:
        """End the child and what it started."""
        pid = self._process.pid
        if pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()
        self._process.join(5.0)
        self._reading.close()


def _main(writing: Connection, data: bytes) -> None:
    """The child: set limits, run TARGET, send messages."""
    with contextlib.suppress(OSError):
        os.setsid()
    _die_with_parent()
    # No GPU, no network, and no pool of threads, whose stacks count as address space.
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    request = msgspec.json.decode(data, type=TrialRequest)
    name = request.spec.name

    def send(message: _Message) -> None:
        writing.send_bytes(msgspec.json.encode(message))

    doing = "its files"

    def report(item: Stage | str) -> None:
        nonlocal doing
        if isinstance(item, str):
            send(_Message("note", item))
            return
        doing = item.doing
        send(_Message("stage", item.doing, item.seconds))
        _limit(item)

    try:
        module, _, function = TARGET.partition(":")
        getattr(importlib.import_module(module), function)(request, report)
        send(_Message("done"))
    except MemoryError:
        _unlimit()
        send(_Message("refused", f"{name}: {doing} needs too much memory; choose another model"))
    except Exception as error:
        _unlimit()
        text = " ".join(str(error).split())[:400]
        if not isinstance(error, GladiusError):
            text = f"{name}: {doing} fails ({type(error).__name__}: {text[:160]}); correct it, or "
            text += "choose another model"
        send(_Message("refused", text.removeprefix(f"expert {name}: ")))


def _die_with_parent() -> None:
    """Let the kernel kill this process when the server ends, as it does with the job (Linux)."""
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _limit(stage: Stage) -> None:
    """Limit CPU time and address space from now on; the hard limits stay."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(time.process_time() + stage.seconds) + 1
    limits = [(resource.RLIMIT_CPU, used)]
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits.append((resource.RLIMIT_AS, pages * resource.getpagesize() + stage.memory))
    for kind, value in limits:
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, hard))


def _unlimit() -> None:
    """Lift the limit of memory, so that the result can be sent."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
