"""The control socket of a runner: viewers attach to it, receive events and send commands.

The protocol is newline-delimited JSON of event and command structs and the messages below. A
viewer receives every event after the `seq` of its Hello. A viewer that does not keep up, or that
sends anything else, is disconnected: the former continues from the history.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from engine.events import AnyCommand, AnyEvent, Job

_MAX_QUEUED_BYTES = 4 << 20
_MAX_REQUEST_BYTES = 64 << 10
_MAX_UNANSWERED = 256
"""Commands of one viewer that wait for their acknowledgement."""


class Watch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="watch"):
    """Viewer to runner: reply with Hello, then send every event from now on."""


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ask"):
    """Viewer to runner: carry out a command, and reply with Answer."""

    command: AnyCommand


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """Runner to viewer: the job. Events up to `seq` are in the history, later ones follow."""

    run_id: str
    job: Job
    pid: int
    seq: int


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="answer"):
    """Runner to viewer: the event that acknowledges its command."""

    event: AnyEvent


_request_decoder = msgspec.json.Decoder(Watch | Ask)
_encoder = msgspec.json.Encoder()


def same_user(connection: socket.socket) -> bool:
    """Whether the other end of an AF_UNIX connection runs under our uid.

    True where the system can't tell: the socket is in an owner-only folder.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("3i", credentials)
    return uid == os.getuid()


class Viewer:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.watching = False
        self.incoming = b""
        self.outgoing: deque[bytes] = deque()
        self.queued = 0
        self.unanswered = 0


class ControlServer:
    """Serves viewers in its own thread, on an AF_UNIX socket at `path`.

    `on_command(viewer, command)` is called in that thread. Raises OSError when the socket can't
    be created.
    """

    def __init__(
        self,
        path: Path,
        *,
        run_id: str,
        job: Job,
        seq: int,
        on_command: Callable[[Viewer, AnyCommand], None],
    ) -> None:
        self._path = path
        self._run_id, self._seq = run_id, seq
        self._job: Job = job
        self._on_command = on_command
        self._lock = threading.Lock()
        self._viewers: set[Viewer] = set()
        self._closing = False
        # This process holds the job's lock, so an existing socket is from a dead runner.
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(64)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._wake_receiver.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def broadcast(self, seq: int, lines: Iterable[bytes]) -> None:
        """Queue committed events (without newlines) for all viewers; `seq` is the last one's."""
        data = b"".join(line + b"\n" for line in lines)
        with self._lock:
            self._seq = seq
            for viewer in self._viewers:
                if viewer.watching:
                    self._queue(viewer, data)
        self._wake()

    def answer(self, viewer: Viewer, event: AnyEvent) -> None:
        """Send the acknowledgement of a command; ignored if the viewer has disconnected."""
        with self._lock:
            if viewer in self._viewers:
                viewer.unanswered -= 1
                self._queue(viewer, _encoder.encode(Answer(event=event)) + b"\n")
        self._wake()

    def close(self, patience: float = 1.0) -> None:
        """Stop; viewers get up to `patience` seconds to receive what is queued for them."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with self._lock:
                if not any(viewer.outgoing for viewer in self._viewers):
                    break
            time.sleep(0.01)
        self._closing = True
        self._wake()
        self._thread.join(timeout=5.0)
        self._path.unlink(missing_ok=True)

    def _queue(self, viewer: Viewer, data: bytes) -> None:
        if viewer.queued + len(data) > _MAX_QUEUED_BYTES:
            # Disconnect, possibly in the middle of a line: the history has all events.
            viewer.watching = False
            viewer.outgoing.clear()
            with contextlib.suppress(OSError):
                viewer.connection.shutdown(socket.SHUT_RDWR)
            return
        viewer.outgoing.append(data)
        viewer.queued += len(data)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # the buffer is full: the thread is being woken already
            self._wake_sender.send(b"!")

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._wake_receiver:
                    with contextlib.suppress(OSError):
                        self._wake_receiver.recv(4096)
                elif key.data in self._viewers:
                    self._attend(key.data, self._receive)
            for viewer in list(self._viewers):
                self._attend(viewer, self._send)
        for viewer in list(self._viewers):
            self._drop(viewer)
        for end in (self._listener, self._wake_sender, self._wake_receiver):
            end.close()
        self._selector.close()

    def _attend(self, viewer: Viewer, act: Callable[[Viewer], None]) -> None:
        """Drop a viewer that sends what is not a request, whatever it is: not UTF-8, nested too
        deeply, of other types. No input ends this thread."""
        try:
            act(viewer)
        except Exception:
            self._drop(viewer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            time.sleep(0.05)  # out of file descriptors: tried again soon
            return
        if not same_user(connection):
            connection.close()
            return
        connection.setblocking(False)
        viewer = Viewer(connection)
        with self._lock:
            self._viewers.add(viewer)
        self._selector.register(connection, selectors.EVENT_READ, viewer)

    def _receive(self, viewer: Viewer) -> None:
        try:
            data = viewer.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        viewer.incoming += data
        if not data or len(viewer.incoming) > _MAX_REQUEST_BYTES:
            self._drop(viewer)
            return
        *lines, viewer.incoming = viewer.incoming.split(b"\n")
        for line in lines:
            request = _request_decoder.decode(line)
            if isinstance(request, Watch):
                self._welcome(viewer)
                continue
            viewer.unanswered += 1
            if viewer.unanswered > _MAX_UNANSWERED:
                self._drop(viewer)
                return
            self._on_command(viewer, request.command)

    def _welcome(self, viewer: Viewer) -> None:
        # Under the same lock as broadcast: no event falls between the Hello and what follows.
        with self._lock:
            hello = Hello(run_id=self._run_id, job=self._job, pid=os.getpid(), seq=self._seq)
            self._queue(viewer, _encoder.encode(hello) + b"\n")
            viewer.watching = True

    def _send(self, viewer: Viewer) -> None:
        with self._lock:
            while viewer.outgoing:
                data = viewer.outgoing[0]
                try:
                    sent = viewer.connection.send(data)
                except BlockingIOError:
                    break
                except OSError:
                    viewer.outgoing.clear()
                    break
                viewer.queued -= sent
                if sent < len(data):
                    viewer.outgoing[0] = data[sent:]
                else:
                    viewer.outgoing.popleft()
            interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if viewer.outgoing else 0)
        if viewer in self._viewers:
            with contextlib.suppress(KeyError):
                self._selector.modify(viewer.connection, interest, viewer)

    def _drop(self, viewer: Viewer) -> None:
        with self._lock:
            self._viewers.discard(viewer)
        with contextlib.suppress(KeyError):
            self._selector.unregister(viewer.connection)
        viewer.connection.close()
