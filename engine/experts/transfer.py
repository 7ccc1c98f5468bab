"""Download one file of the Hub in a thread: resume a part file by range, verify its hash, move it
to its target.

huggingface_hub's own download restarts a file on every call, so the loop is written here. hf-xet is
not used: it also downloads complete files, and the Hub serves files of this size over plain HTTP.
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
from engine.experts.hub_errors import TransientError, translate_error
from engine.experts.registry import ExpertSpec
from engine.units import size
from engine.workspace import fsync_dir, write_bytes

RETRY_VARIABLE = "GLADIUS_RETRY_SECONDS"
"""Environment variable: seconds before the first retry (1); each further wait is twice as long."""

MAX_TRIES = 8
"""A download fails after this many tries in a row without a new byte."""
MAX_WRONG = 3
"""A download fails when the complete file has had a wrong hash this many times."""
_MAX_WAIT = 30.0
_CHUNK = 1 << 20


class TransferStopped(Exception):
    """The transfer was stopped; its part file is kept."""


def retry_wait(tries: int, first: float | None = None) -> float:
    """Seconds to wait after the `tries`-th failure in a row: exponential backoff with jitter."""
    if first is None:
        first = float(os.environ.get(RETRY_VARIABLE) or 1.0)
    return min(first * 2.0 ** (tries - 1), _MAX_WAIT) * random.uniform(0.5, 1.0)


def content_hash(file: RemoteFile) -> Any:
    """A new hash object for the file's content: sha256, or git's hash of a blob."""
    if file.sha256:
        return hashlib.sha256()
    # Repositories in git's newer object format hash blobs with sha256.
    kind = hashlib.sha256 if len(file.blob_id) == 64 else hashlib.sha1
    return kind(b"blob %d\0" % file.size)


def has_content(path: Path, file: RemoteFile, tick: Callable[[], None] = lambda: None) -> bool:
    """Whether `path` is a regular file (not a link) with exactly the content of the Hub's file.

    `tick` is called after each chunk that is hashed.
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = content_hash(file)
    with open(path, "rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            tick()
    return digest.hexdigest() == file.key


class Transfer:
    """The download of one file, in its own thread.

    Attributes:
        done: valid bytes in the part file.
        received: bytes received over the network in this process.
        error: why the download failed; None while it runs and when it is complete.
        complete: whether the verified file is at its target.
    """

    def __init__(
        self,
        spec: ExpertSpec,
        listing: Listing,
        file: RemoteFile,
        parts: Path,
        target: Path,
        warn: Callable[[str], None],
    ) -> None:
        """`parts`: folder of the part file; `target`: path of the verified file; `warn` is called
        in the thread with a line about each retry."""
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
        self._warn = warn
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._digest = content_hash(file)
        self._descriptor = -1
        self._thread = threading.Thread(target=self._run, name=f"get {file.name}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread is running."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Signal the thread to stop and keep the part file; does not wait."""
        self._stop.set()
        connection = self._socket
        if connection is not None:
            # Ends a read that waits for a slow server.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def join(self, seconds: float) -> bool:
        """Wait for the thread's end; returns whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            # O_NOFOLLOW: another user who can write there could guess the name and place a link.
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._descriptor = os.open(self._part, flags, 0o666)
            try:
                self._resume()
                self._fetch()
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
            os.replace(self._part, self._target)
            self._etag_file.unlink(missing_ok=True)
            fsync_dir(self._target.parent)
            self.complete = True
        except TransferStopped:
            pass
        except OSError as error:
            if not error.filename:
                error.filename = str(self._part)
            self.error = translate_error(self._spec, error, self.file.name)
        except Exception as error:
            self.error = translate_error(self._spec, error, self.file.name)

    def _resume(self) -> None:
        """Hash the existing part file; a part that is too long is discarded."""
        if os.fstat(self._descriptor).st_size > self.file.size:
            self._restart()
        while chunk := os.pread(self._descriptor, _CHUNK, self.done):
            self._check_stop()
            self._digest.update(chunk)
            self.done += len(chunk)

    def _restart(self) -> None:
        """Discard the part file's content."""
        os.ftruncate(self._descriptor, 0)
        self._etag_file.unlink(missing_ok=True)
        self._digest = content_hash(self.file)
        self.done = 0

    def _fetch(self) -> None:
        """Append until the file is complete and its hash is right.

        Raises:
            TransferStopped: `stop` was called.
            GladiusError: the download failed, after retries if they could help.
        """
        tries = wrong = 0
        furthest = self.done
        while True:
            try:
                if self.done < self.file.size:
                    self._append()
                if self.done < self.file.size:
                    raise TransientError("the connection ended early")
            except (TransferStopped, GladiusError):
                raise
            except Exception as error:
                self._check_stop()  # `stop` shuts the connection down, which raises here too
                failure = translate_error(self._spec, error, self.file.name)
                if not isinstance(failure, TransientError):
                    raise
                # Only new bytes count as progress: a server without ranges that always disconnects
                # would else be retried forever.
                tries = 1 if self.done > furthest else tries + 1
                furthest = max(furthest, self.done)
                self._wait_for_retry(failure, tries)
                continue
            if self._digest.hexdigest() == self.file.key:
                return
            wrong += 1
            self._restart()
            kind = "sha256" if self.file.sha256 else "git id"
            if wrong == MAX_WRONG:
                raise GladiusError(
                    f"{self._spec.name}: {self.file.name} had a wrong {kind} in {MAX_WRONG} "
                    "downloads and was deleted; check for a proxy that changes it"
                )
            self._warn(f"{self.file.name}: its {kind} is not the Hub's; downloading it again")

    def _wait_for_retry(self, failure: TransientError, tries: int) -> None:
        """Wait after the `tries`-th failure in a row; raises GladiusError after MAX_TRIES."""
        if tries > MAX_TRIES:
            raise GladiusError(
                f"{self._spec.name}: {self.file.name}: {failure}; failed {MAX_TRIES} times in a "
                "row; try again later, the received part is kept"
            ) from failure
        wait = retry_wait(tries) if failure.wait is None else failure.wait
        self._warn(
            f"{self.file.name}: {failure}; retrying in {wait:.0f} s, from {size(self.done)} "
            f"(try {tries} of {MAX_TRIES})"
        )
        if self._stop.wait(wait):
            raise TransferStopped from None

    def _append(self) -> None:
        """Request the missing bytes and write them as they arrive."""
        headers = request_headers()
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            if etag := self._etag():
                headers["If-Range"] = etag
        # The client follows redirects to the storage of large files, without the token.
        with get_session().stream(
            "GET", self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response:
            stream = response.extensions.get("network_stream")
            self._socket = stream.get_extra_info("socket") if stream is not None else None
            try:
                self._check_stop()
                if response.status_code == 416:
                    self._restart()  # the part is longer than the Hub's file
                hf_raise_for_status(response)
                self._accept(response)
                encoded = response.headers.get("Content-Encoding", "identity") != "identity"
                for data in response.iter_bytes() if encoded else response.iter_raw():
                    self._write(data)
            finally:
                self._socket = None

    def _accept(self, response: Any) -> None:
        """Check that the response continues the part file, or restart for a complete response.

        Raises TransientError for any other response.
        """
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status_code == 206:
            span = response.headers.get("Content-Range", "")
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span)
            fits = match and int(match[1]) == self.done and match[2] in ("*", str(self.file.size))
            if not fits or encoded:
                self._restart()
                raise TransientError(f"the Hub sent a wrong byte range ({span or 'no range'})")
            return
        if response.status_code != 200:
            raise TransientError(f"the Hub answers {response.status_code}")
        if self.done:
            # The file has changed, or the server does not support ranges: it sends all of it.
            self._restart()
        etag = response.headers.get("ETag", "")
        if etag.startswith('"'):  # a weak ETag does not identify the bytes
            write_bytes(self._etag_file, etag.encode())

    def _etag(self) -> str:
        """The ETag of the response that began the part file; empty if unknown."""
        try:
            text = self._etag_file.read_text("latin-1")
        except OSError:
            return ""
        return text if re.fullmatch(r'"[!#-~]*"', text) else ""

    def _write(self, data: bytes) -> None:
        self.received += len(data)
        if len(data) > self.file.size - self.done:
            self._restart()
            raise TransientError("the Hub sent more bytes than the file has")
        view = memoryview(data)
        while view:
            self._check_stop()
            written = os.write(self._descriptor, view[:_CHUNK])
            self._digest.update(view[:written])
            self.done += written
            view = view[written:]

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise TransferStopped
