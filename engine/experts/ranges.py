"""Owns how the bytes of one file come: appended to a part file, gone on with after any end, hashed,
and moved into place only when the hash is the Hub's.

The loop is ours because the client's own starts a file anew on every call. hf-xet is not used: the
client hands it whole files too, its own ranges can't be tried without its servers, and the Hub
serves every file of an expert's size over plain HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import hf_raise_for_status

from engine.errors import GladiusError
from engine.experts.hub import Listing, RemoteFile, file_url, request_headers
from engine.experts.refusals import Hiccup, told
from engine.experts.registry import ExpertSpec
from engine.units import size
from engine.workspace import fsync_dir, write_bytes

RETRY_VARIABLE = "GLADIUS_RETRY_SECONDS"
"""Environment variable: seconds before the first retry (1); each further wait is twice as long."""

MAX_TRIES = 8
"""Tries in a row without a single new byte before a file is given up."""
MAX_WRONG = 3
"""Times that a file may come whole with wrong bytes."""
_LONGEST_WAIT = 30.0
_PIECE = 1 << 20

Say = Callable[[str], None]


class Halted(Exception):
    """The transfer was told to leave off; its part file stays."""


def retry_wait(tries: int, first: float | None = None) -> float:
    """Seconds to wait after the `tries`-th failure in a row, at random within a factor of two, so
    that many clients don't come back at once."""
    if first is None:
        first = float(os.environ.get(RETRY_VARIABLE) or 1.0)
    return min(first * 2.0 ** (tries - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.0)


def content_hash(file: RemoteFile) -> Any:
    """A fresh hash object for the file's content: sha256, or git's SHA-1 of a blob."""
    if file.sha256:
        return hashlib.sha256()
    # Git's newer repositories name blobs by sha256, in the same form.
    kind = hashlib.sha256 if len(file.blob_id) == 64 else hashlib.sha1
    return kind(b"blob %d\0" % file.size)


def has_content(path: Path, file: RemoteFile, tick: Callable[[], None] = lambda: None) -> bool:
    """Whether `path` is a plain file (no link) with exactly the content that the Hub names."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = content_hash(file)
    with open(path, "rb") as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
            tick()
    return digest.hexdigest() == file.key


class Transfer:
    """One file on its way, in a thread of its own.

    Attributes:
        done: bytes of the part file that count.
        received: bytes that have come over the wire in this process.
        error: why it was given up; None while it runs and when it is complete.
        complete: whether the file lies verified at its target.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        listing: Listing,
        file: RemoteFile,
        parts: Path,
        target: Path,
        say: Say,
    ) -> None:
        """`parts` holds the part file; `target` is where the file goes once verified; `say` is
        called, in the thread, with a line about each retry."""
        self.file = file
        self.done = 0
        self.received = 0
        self.error: Exception | None = None
        self.complete = False
        self._spec = spec
        self._url = file_url(listing, file)
        self._part = parts / f"{file.key}.part"
        self._etag_file = parts / f"{file.key}.etag"
        self._target = target
        self._say = say
        self._halt = threading.Event()
        self._socket: socket.socket | None = None
        self._digest = content_hash(file)
        self._descriptor = -1
        self._thread = threading.Thread(target=self._run, name=f"get {file.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def halt(self) -> None:
        """Leave off soon; what has come stays. Returns at once."""
        self._halt.set()
        connection = self._socket
        if connection is not None:
            # A read that waits for a slow server returns at once.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; False when it goes on."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            # Never through a link: the part's name is known to whoever may write there.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(self._part, flags, 0o666)
            try:
                self._take_up()
                self._fetch()
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
            os.replace(self._part, self._target)
            self._etag_file.unlink(missing_ok=True)
            fsync_dir(self._target.parent)
            self.complete = True
        except Halted:
            pass
        except OSError as error:
            if not error.filename:
                error.filename = str(self._part)
            self.error = told(self._spec, error, self.file.name)
        except Exception as error:
            self.error = told(self._spec, error, self.file.name)

    def _take_up(self) -> None:
        """Hash what an earlier process has left, so that the end needs no second reading."""
        if os.fstat(self._descriptor).st_size > self.file.size:
            self._begin_anew()
        while piece := os.pread(self._descriptor, _PIECE, self.done):
            self._check_halt()
            self._digest.update(piece)
            self.done += len(piece)

    def _begin_anew(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._etag_file.unlink(missing_ok=True)
        self._digest = content_hash(self.file)
        self.done = 0

    def _fetch(self) -> None:
        """Append until the file is whole and its hash right; raises GladiusError or Hiccup."""
        tries = wrong = 0
        furthest = self.done
        while True:
            try:
                if self.done < self.file.size:
                    self._append()
                if self.done < self.file.size:
                    raise Hiccup("the connection ended early")
            except (Halted, GladiusError):
                raise
            except Exception as error:
                self._check_halt()  # a connection that was shut down for it breaks like any other
                trouble = told(self._spec, error, self.file.name)
                if not isinstance(trouble, Hiccup):
                    raise
                # New bytes count, not bytes that come again: a server without ranges that always
                # breaks off would never be given up.
                tries = 1 if self.done > furthest else tries + 1
                furthest = max(furthest, self.done)
                if tries > MAX_TRIES:
                    raise GladiusError(
                        f"{self._spec.name}: {self.file.name}: {trouble}; given up after "
                        f"{MAX_TRIES} tries; try again later, what has come is kept"
                    ) from error
                wait = retry_wait(tries) if trouble.wait is None else trouble.wait
                self._say(
                    f"{self.file.name}: {trouble}; again in {wait:.0f} s, from "
                    f"{size(self.done)} (try {tries} of {MAX_TRIES})"
                )
                if self._halt.wait(wait):
                    raise Halted from None
                continue
            if self._digest.hexdigest() == self.file.key:
                return
            wrong += 1
            self._begin_anew()
            kind = "sha256" if self.file.sha256 else "git id"
            if wrong == MAX_WRONG:
                raise GladiusError(
                    f"{self._spec.name}: {self.file.name} came {MAX_WRONG} times with another "
                    f"{kind} than the Hub says, and is dropped; is there a proxy that changes it?"
                )
            self._say(f"{self.file.name}: its {kind} is not what the Hub says; fetched anew")

    def _append(self) -> None:
        """One request for what is lacking, written as it comes."""
        headers = request_headers()
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if etag := self._etag():
                headers["If-Range"] = etag
        # The client follows redirects to where large files lie, without the token.
        with get_session().stream(
            "GET", self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            stream = response.extensions.get("network_stream")
            self._socket = stream.get_extra_info("socket") if stream is not None else None
            try:
                self._check_halt()
                if response.status_code == 416:
                    self._begin_anew()  # what is here is not a beginning of what is there
                hf_raise_for_status(response)
                self._accept(response)
                encoded = response.headers.get("Content-Encoding", "identity") != "identity"
                for data in response.iter_bytes() if encoded else response.iter_raw():
                    self._write(data)
            finally:
                self._socket = None

    def _accept(self, response: Any) -> None:
        """Settle where the body of an answer belongs; Hiccup for one that belongs nowhere."""
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status_code == 206:
            span = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span)
            fits = match and int(match[1]) == self.done and match[2] in ("*", str(self.file.size))
            if not fits or encoded:
                self._begin_anew()
                raise Hiccup(f"the Hub sent another part than asked ({span or 'no range'})")
            return
        if response.status_code != 200:
            raise Hiccup(f"the Hub answers {response.status_code}")
        if self.done:
            # It has changed since, or ranges are not served: all of it comes.
            self._begin_anew()
        etag = response.headers.get("ETag", "")
        if etag.startswith('"'):  # a weak one says nothing about bytes
            write_bytes(self._etag_file, etag.encode())

    def _etag(self) -> str:
        """The ETag under which the part file was begun; empty where it isn't known."""
        try:
            text = self._etag_file.read_text("latin-1")
        except OSError:
            return ""
        return text if re.fullmatch(r'"[!#-~]*"', text) else ""

    def _write(self, data: bytes) -> None:
        self.received += len(data)
        if len(data) > self.file.size - self.done:
            self._begin_anew()
            raise Hiccup("the Hub sends more than the file is long")
        view = memoryview(data)
        while view:
            self._check_halt()
            written = os.write(self._descriptor, view[:_PIECE])
            self._digest.update(view[:written])
            self.done += written
            view = view[written:]

    def _check_halt(self) -> None:
        if self._halt.is_set():
            raise Halted
