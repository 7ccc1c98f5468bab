"""Runs the command in forks of one process that has loaded torch: `python -m ... FOLDER`.

Tests of hundreds of kills would otherwise spend minutes on imports. Runner and worker are processes
of their own, as always; only the worker is forked, not spawned. Requests and answers are lines of
JSON on standard input and output: {"run": [words], "env": {}, "out": path, "err": path} gives a
pid, {"poll": pid} gives its exit code or null.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from tests.support.paths import REPO
from tests.support.program import Root, Running

# The server


class _ForkedWorker(multiprocessing.context.ForkProcess):
    """A worker without the descriptors of its runner, as a spawned one."""

    def run(self) -> None:
        kept = {0, 1, 2, resource_tracker._resource_tracker._fd}  # type: ignore[attr-defined]
        for argument in self._args:  # type: ignore[attr-defined]
            ends = (getattr(argument, name, None) for name in ("_reader", "_writer"))
            kept |= {end.fileno() for end in (argument, *ends) if hasattr(end, "fileno")}
        for name in os.listdir("/proc/self/fd"):
            if int(name) not in kept:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the descriptor of the listing itself
        super().run()


class _Contexts:
    """Stands for `multiprocessing` in the runner."""

    Queue = multiprocessing.Queue

    @staticmethod
    def get_context(method: str) -> Any:
        context = multiprocessing.get_context("fork")
        context.Process = _ForkedWorker  # type: ignore[misc]
        return context


def _serve() -> None:
    warnings.simplefilter("ignore")  # about forks of a process with threads
    import torch

    torch.set_num_threads(1)
    import engine.distill.jobs.train
    import engine.run.spawn as spawn
    import gladius_tui.commands
    import gladius_tui.headless

    assert engine.distill.jobs.train and gladius_tui.commands and gladius_tui.headless
    spawn.multiprocessing = _Contexts  # type: ignore[assignment]
    resource_tracker.ensure_running()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = _run(request)
        print(json.dumps(answer), flush=True)


def _run(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for path, target in ((os.devnull, 0), (request["out"], 1), (request["err"], 2)):
            flags = os.O_RDWR | (os.O_CREAT | os.O_APPEND if target else 0)
            os.dup2(os.open(path, flags, 0o666), target)
        os.environ.update(request["env"])
        sys.argv = request["run"]
        from gladius_tui.cli import main

        code = int(main() or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# In the tests


class ForkServer:
    """The server as a child of the test process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            cwd=REPO,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


class _Forked:
    """A process of the server, with the methods of Popen that tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._server.ask(poll=self.pid)
        return self._code

    def wait(self, timeout: float = 60.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"pid {self.pid} has not ended in {timeout:g} s"
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedRunning(Running):
    """`Running` in a fork of the server."""

    def __init__(
        self, server: ForkServer, root: Root, arguments: list[str], **environment: str
    ) -> None:
        self.output = root.path / f"out-{time.monotonic_ns()}.jsonl"
        self.errors = self.output.with_suffix(".err")
        self.output.touch()
        pid = server.ask(
            run=root.command("--no-ui", "--json", *arguments),
            env=environment,
            out=str(self.output),
            err=str(self.errors),
        )
        self.process = _Forked(server, pid)  # type: ignore[assignment]


def run_forked(
    server: ForkServer, root: Root, *arguments: str, **environment: str
) -> tuple[int, list[str]]:
    """Exit code of a command, and its lines `error: ...`."""
    running = ForkedRunning(server, root, list(arguments), **environment)
    code = running.process.wait(90)
    text = Path(running.errors).read_text()
    assert "Traceback" not in text, text
    return code, [line for line in text.splitlines() if line.startswith("error: ")]


if __name__ == "__main__":
    _serve()
