"""A real terminal for tests: the app in a pty, its keys and its output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable

from tests.support.paths import REPO


class Terminal:
    """`gladius_train ARGV` on a pty, in a session of its own."""

    def __init__(
        self, *argv: str, columns: int = 110, rows: int = 32, controls: bool = True, **env: str
    ) -> None:
        """`controls`: whether it is the program's controlling terminal, whose loss sends SIGHUP."""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.sane = termios.tcgetattr(slave)
        self.slave = slave
        self.output = b""
        self._over = False
        self.pid = os.fork()
        if self.pid == 0:  # the child: becomes the program, as a shell would start it
            os.setsid()
            if controls:
                fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            os.close(self.master)
            for number in (0, 1, 2):
                os.dup2(slave, number)
            os.chdir(REPO)
            words = [sys.executable, "-m", "gladius_tui.cli", *argv]
            os.execve(sys.executable, words, {**os.environ, "TERM": "xterm-256color", **env})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._over:
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if not ready:
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            if not data:
                return
            self.output += data

    def press(self, keys: str) -> None:
        """Type these keys."""
        os.write(self.master, keys.encode())

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Wait until the output contains this text."""
        self.until(lambda: text.encode() in self.output, f"{text!r} was not shown", seconds)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        """Wait until the condition is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what}; the end of its output: " + repr(
                self.output[-2000:]
            )
            time.sleep(0.02)

    def forget(self) -> None:
        """Discard the output so far."""
        self.output = b""

    def hang_up(self) -> None:
        """Close the terminal, as closing its window does."""
        self._over = True
        self._reader.join()
        os.close(self.slave)
        os.close(self.master)
        self.master = self.slave = -1

    def end(self, seconds: float = 20.0) -> int:
        """Wait for the program to exit; returns its exit code, negative for a signal."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                time.sleep(0.1)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, f"it did not end: {self.output[-2000:]!r}"
            time.sleep(0.02)

    def is_sane(self) -> bool:
        """Whether the terminal is restored: modes, normal screen, visible cursor, no mouse."""
        modes = termios.tcgetattr(self.slave)
        shown = self.output.rfind(b"\x1b[?25h") > self.output.rfind(b"\x1b[?25l")
        normal = self.output.rfind(b"\x1b[?1049l") > self.output.rfind(b"\x1b[?1049h")
        mouse = self.output.rfind(b"\x1b[?1003l") > self.output.rfind(b"\x1b[?1003h")
        return modes[:4] == self.sane[:4] and shown and normal and mouse

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._over = True
        self._reader.join()
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)
