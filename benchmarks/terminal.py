"""Owns a terminal for programs that are measured: a pty of a given size, and what was written to it
when.
"""

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
    """A program in a pty of its own. Everything that it writes is kept, with its time."""

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
        """Type; gives the place in what is written from which an answer can come."""
        with self._changed:
            place = len(self._written)
        os.write(self._master, keys)
        return place

    def wait_for(self, texts: Sequence[bytes], place: int = 0, seconds: float = 60.0) -> float:
        """When (perf_counter) one of the texts had been written since `place`."""
        deadline = time.perf_counter() + seconds
        tail = b""
        with self._changed:
            while True:
                for when, data in self._written[place:]:
                    tail = (tail + data)[-len(data) - 64 :]
                    if any(text in tail for text in texts):
                        return when
                place = len(self._written)
                left = deadline - time.perf_counter()
                if left <= 0 or self.process.poll() is not None:
                    raise TimeoutError(f"{texts[0]!r} was not written; last: {tail[-400:]!r}")
                self._changed.wait(min(left, 1.0))

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
