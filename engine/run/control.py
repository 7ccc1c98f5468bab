"""Attaching to the runner of a job: receive its events, send it commands."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import get_args

import msgspec

from engine.errors import GladiusError, MissingError
from engine.events import AnyCommand, AnyEvent, Job
from engine.run.history import History
from engine.run.lock import lock_owner
from engine.run.server import Answer, Ask, Hello, Watch, same_user
from engine.workspace import Workspace

# A runner takes its lock shortly before it listens.
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 600.0
_PAGE = 1000

_decoder = msgspec.json.Decoder(AnyEvent | Hello | Answer)
_encoder = msgspec.json.Encoder()


def running_jobs(ws: Workspace) -> list[Job]:
    """The jobs that have a live runner on this root."""
    return [job for job in get_args(Job) if lock_owner(ws, job) is not None]


def attach(ws: Workspace, job: Job = "train", after_seq: int | None = None) -> Attachment:
    """Attach to the runner of a job; raises MissingError when there is none.

    `after_seq` None: events from now on. A number: the history's events after it, then new ones,
    each exactly once.
    """
    return Attachment(ws, job, after_seq)


class _Connection:
    """A connection to a runner, read message by message."""

    def __init__(self, ws: Workspace, job: Job) -> None:
        self._socket = _connect(ws, job)
        self._rest = b""
        self._messages: list[AnyEvent | Hello | Answer] = []

    def send(self, message: Watch | Ask) -> None:
        self._socket.settimeout(5.0)
        self._socket.sendall(_encoder.encode(message) + b"\n")

    def receive(self, deadline: float | None) -> AnyEvent | Hello | Answer:
        """The next message. Raises TimeoutError after `deadline` (monotonic; None: never), and
        EOFError when the runner closed the connection, GladiusError for what isn't a message."""
        while not self._messages:
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            self._socket.settimeout(remaining)
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                raise
            except OSError as error:
                raise EOFError from error
            if not data:
                raise EOFError
            *lines, self._rest = (self._rest + data).split(b"\n")
            try:
                self._messages = [_decoder.decode(line) for line in lines]
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                raise GladiusError(
                    f"the runner sent what this version can't read ({error}); watch it with the "
                    "version that started it"
                ) from error
            self._messages.reverse()
        return self._messages.pop()

    def close(self) -> None:
        self._socket.close()


def _connect(ws: Workspace, job: Job) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while (owner := lock_owner(ws, job)) is not None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(owner.socket)
        except OSError as error:
            connection.close()
            if time.monotonic() > deadline:
                raise MissingError(
                    f"{job} runs (pid {owner.pid}) but does not accept connections "
                    f"({error.strerror}); end it with: kill {owner.pid}"
                ) from error
            time.sleep(0.05)
            continue
        if not same_user(connection):
            connection.close()
            raise MissingError(f"the socket {owner.socket} belongs to another user")
        return connection
    raise MissingError(f"no {job} job runs in {ws.root}; start it with: gladius_train {job}")


class Attachment:
    """A connection to a running job. `events` is for one thread, `send` for any."""

    def __init__(self, ws: Workspace, job: Job, after_seq: int | None) -> None:
        self._ws = ws
        self._job: Job = job
        self._history = History(ws.history_file)
        self._connection: _Connection | None = None
        self._missed: Iterator[AnyEvent] = iter(())
        self.ended = False
        """Whether the runner has ended and all its events were returned."""
        hello = self._watch()
        self.run_id = hello.run_id
        self.pid = hello.pid
        self.seq = hello.seq if after_seq is None else after_seq
        """Number of the last event that was returned."""
        self._missed = self._past(hello.seq)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def events(self, timeout: float | None = None) -> Iterator[AnyEvent]:
        """The events in order. Ends when the runner has ended (`ended` is then True), or when none
        arrived for `timeout` seconds; a later call continues where this one stopped."""
        while not self.ended:
            for event in self._missed:
                yield event
            try:
                event = self._next(timeout)
            except TimeoutError:
                return
            if event is not None and event.seq > self.seq:
                self.seq = event.seq
                yield event

    def send(self, command: AnyCommand, timeout: float = _ANSWER_SECONDS) -> AnyEvent:
        """Send a command; returns the event that acknowledges it, which has the step.

        Raises MissingError when the runner has ended, GladiusError when there was no answer within
        `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        connection = _Connection(self._ws, self._job)
        name = type(command).__name__.lower()
        try:
            connection.send(Ask(command=command))
            while True:
                message = connection.receive(deadline)
                if isinstance(message, Answer):
                    return message.event
        except TimeoutError as error:
            raise GladiusError(
                f"no answer to {name} within {timeout:g} s; the job is busy or suspended; "
                "check it with: gladius_train status"
            ) from error
        except (EOFError, OSError) as error:
            raise MissingError(f"the job ended before it answered {name}") from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection; the job keeps running."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._history.close()

    def _watch(self) -> Hello:
        connection = _Connection(self._ws, self._job)
        connection.send(Watch())
        try:
            hello = connection.receive(time.monotonic() + 10.0)
        except (EOFError, OSError) as error:
            connection.close()
            raise MissingError(f"the {self._job} job has just ended") from error
        assert isinstance(hello, Hello)
        self._connection = connection
        return hello

    def _past(self, up_to: int | None) -> Iterator[AnyEvent]:
        """The history's events after the last one that was returned."""
        while page := self._history.events(self.run_id, self.seq, _PAGE, up_to=up_to):
            for event in page:
                self.seq = event.seq
                yield event

    def _next(self, timeout: float | None) -> AnyEvent | None:
        if self._connection is None:
            self.ended = True
            return None
        try:
            message = self._connection.receive(
                None if timeout is None else time.monotonic() + timeout
            )
        except EOFError:
            self._reconnect()
            return None
        return None if isinstance(message, Hello | Answer) else message

    def _reconnect(self) -> None:
        """After a disconnect: continue from the history, and attach again if the run still runs."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None
        up_to = None
        try:
            hello = self._watch()
            up_to = hello.seq
            if hello.run_id != self.run_id:
                up_to = None
                self.close()
        except MissingError:
            pass
        self._missed = self._past(up_to)
