"""Run a program in a pty of a given size and record its output with times."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence


class Terminal:
    """A program in a pty; its output is recorded with times."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], size: tuple[int, int] = (120, 36)
    ) -> None:
        """`size`: columns, rows."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
            start_new_session=True,
        )
        os.close(slave)
        self._master = master
        self._changed = threading.Condition()
        self._written: list[tuple[float, bytes]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:
                data = b""
            with self._changed:
                if not data:
                    self._changed.notify_all()
                    return
                self._written.append((time.perf_counter(), data))
                self._changed.notify_all()

    def press(self, keys: bytes) -> int:
        """Type keys; returns the position in the output from which `wait_for` can wait."""
        with self._changed:
            position = len(self._written)
        os.write(self._master, keys)
        return position

    def wait_for(self, texts: Sequence[bytes], position: int = 0, seconds: float = 60.0) -> float:
        """Wait for one of the texts in the output from `position` on; returns its time
        (perf_counter). Raises TimeoutError."""
        deadline = time.perf_counter() + seconds
        tail = b""
        with self._changed:
            while True:
                for when, data in self._written[position:]:
                    tail = (tail + data)[-len(data) - 64 :]
                    if any(text in tail for text in texts):
                        return when
                position = len(self._written)
                remaining = deadline - time.perf_counter()
                if remaining <= 0 or self.process.poll() is not None:
                    raise TimeoutError(f"{texts[0]!r} was not printed; last: {tail[-400:]!r}")
                self._changed.wait(min(remaining, 1.0))

    def close(self) -> None:
        """End the program and the terminal."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self._master)
