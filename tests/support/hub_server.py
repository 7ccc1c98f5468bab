"""A small server that speaks the Hub's HTTP, with faults on demand. See README.md beside it.

Run by hand: `python tests/hub/hub_server.py FOLDER [--rate BYTES_PER_SECOND]` serves every
`FOLDER/org/name`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.uploads import Uploads

_PIECE = 1 << 16


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, `times` times."""

    path: str = ".*"
    """Regular expression, searched in the path (of the Hub's or of the store's)."""
    method: str = "GET"
    times: int = 1
    status: int = 0
    """Answer with this status instead."""
    headers: dict[str, str] = field(default_factory=dict)
    """More headers of that answer."""
    cut_after: int | None = None
    """Break the connection off after so many bytes of the body."""
    short_by: int = 0
    """End the body early, and say in Content-Length that it is whole at that."""
    rate: float | None = None
    """Bytes a second."""
    wrong_at: int | None = None
    """Flip the bits of the byte at this place of the file."""
    no_ranges: bool = False
    """Answer a range with 200 and the whole file."""
    shifted: bool = False
    """Answer a range with another one than was asked."""
    hang: float = 0.0
    """Seconds of silence before the body."""
    gzip: bool = False
    """Say that the body is compressed, whatever was accepted, and compress it."""


class Repo:
    """One repository at one commit. Files are bytes, or paths of large files."""

    def __init__(
        self,
        files: dict[str, bytes | Path],
        commit: str = "a" * 40,
        gated: bool = False,
        private: bool = False,
    ) -> None:
        self.files = files
        self.commit = commit
        self.gated = gated
        self.private = private
        self.claimed: dict[str, str] = {}
        """Hashes to be told instead of the true ones, by file name."""
        self.bare = False
        """Whether the listing leaves sizes and hashes out, as mirrors may."""
        self._hashes: dict[str, str] = {}

    def size(self, name: str) -> int:
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def is_large(self, name: str) -> bool:
        return name.endswith(".safetensors") or self.size(name) > 1_000_000

    def hash(self, name: str) -> str:
        """sha256 of a large file, git's blob id of a small one."""
        if name in self.claimed:
            return self.claimed[name]
        if name not in self._hashes:
            large = self.is_large(name)
            digest = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % self.size(name))
            for start in range(0, self.size(name), 1 << 20):
                digest.update(self.read(name, start, 1 << 20))
            self._hashes[name] = digest.hexdigest()
        return self._hashes[name]

    def read(self, name: str, start: int, count: int) -> bytes:
        content = self.files[name]
        if isinstance(content, bytes):
            return content[start : start + count]
        with open(content, "rb") as file:
            file.seek(start)
            return file.read(count)

    def siblings(self) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for name in self.files:
            row: dict[str, object] = {"rfilename": name}
            if not self.bare:
                row |= {"size": self.size(name), "blobId": "b" * 40}
                if self.is_large(name):
                    row["lfs"] = {"sha256": self.hash(name), "size": self.size(name)}
                    row["lfs"] |= {"pointerSize": 135}  # type: ignore[operator]
                else:
                    row["blobId"] = self.hash(name)
            rows.append(row)
        return rows


class Hub:
    """The server: an API and small files at `url`, large files behind a redirect at another port,
    as the Hub's own store is. Faults are taken in order, the first that matches.

    Attributes:
        asked: every request, as (method, path, headers).
        sent: bytes of file bodies that were sent, in all.
        rate: bytes a second of every body; None: as fast as it goes.
        tokens: tokens that are valid; those in `licensed` may read gated repositories, those in
            `readers` may not write.
        objects: large files that were uploaded, by their SHA-256.
    """

    def __init__(self, rate: float | None = None, port: int = 0) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0
        self.rate = rate
        self.tokens: set[str] = set()
        self.licensed: set[str] = set()
        self.readers: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._servers = [_serve(self, _HubHandler, port), _serve(self, _StoreHandler, 0)]
        self.url, self.store_url = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    def add(self, name: str, files: dict[str, bytes | Path], **options: object) -> Repo:
        """Register a repository."""
        self.repos[name] = Repo(files, **options)  # type: ignore[arg-type]
        return self.repos[name]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def drop(self) -> int:
        """Break off every connection that is open now; returns how many."""
        with self._lock:
            live = list(self._live)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(live)

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets; its count goes down."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def count(self, sent: int) -> None:
        with self._lock:
            self.sent += sent

    def file_requests(self) -> list[tuple[str, str, dict[str, str]]]:
        """The requests for bytes of files."""
        return [a for a in self.requests if a[0] == "GET" and "/api/" not in a[1]]


def _serve(hub: Hub, handler: type[_Handler], port: int) -> ThreadingHTTPServer:
    bound = type(handler.__name__, (handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), bound)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(Uploads, BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # What lies in buffers when a connection breaks was never received; keep it little, so
        # that `sent` tells what went over the wire.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
        with self.hub._lock:
            self.hub._live.add(self.connection)

    def finish(self) -> None:
        with self.hub._lock:
            self.hub._live.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, self.path, dict(self.headers.items())))
        fault = self.hub.fault(self.command, path)
        self.received = self.body() if self.command in ("POST", "PUT") else b""
        with contextlib.suppress(ConnectionError):
            if fault is not None and fault.status:
                self.answer(fault.status, b"", fault.headers)
            else:
                self.serve(path, fault or Fault())

    def serve(self, path: str, fault: Fault) -> None:
        raise NotImplementedError

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def send_file(self, repo: Repo, name: str, etag: str, fault: Fault, **extra: str) -> None:
        """The file, or the range of it that is asked, with everything that may go wrong."""
        size = repo.size(name)
        start, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if wanted and not fault.no_ranges and condition in (None, f'"{etag}"'):
            start, status = int(wanted[1]), 206
            if start >= size:
                self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
                return
            if fault.shifted:
                start = max(0, start - 1)
        end = size - fault.short_by
        self.send_response(status)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        for key, value in extra.items():
            self.send_header(key.replace("_", "-"), value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if fault.gzip:
            import gzip

            body = gzip.compress(repo.read(name, 0, size))
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Content-Length", str(max(0, end - start)))
        self.end_headers()
        if self.command == "GET":
            self.send_body(repo, name, start, end, fault)

    def send_body(self, repo: Repo, name: str, start: int, end: int, fault: Fault) -> None:
        time.sleep(fault.hang)
        rate = fault.rate or self.hub.rate
        piece = _PIECE if rate is None else max(1, min(_PIECE, int(rate / 20)))
        began, place = time.monotonic(), start
        while place < end:
            count = min(piece, end - place)
            if fault.cut_after is not None:
                count = min(count, start + fault.cut_after - place)
                if count <= 0:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
            data = bytearray(repo.read(name, place, count))
            if fault.wrong_at is not None and place <= fault.wrong_at < place + count:
                data[fault.wrong_at - place] ^= 0xFF
            self.wfile.write(data)
            self.hub.count(len(data))
            place += count
            if rate is not None:
                ahead = (place - start) / rate - (time.monotonic() - began)
                time.sleep(max(0.0, ahead))


class _HubHandler(_Handler):
    """The API, and files by name."""

    def serve(self, path: str, fault: Fault) -> None:
        if self.command == "POST" or path == "/api/whoami-v2":
            status, told = self.receive(path, self.received)
            self.answer(status, json.dumps(told).encode(), {"Content-Type": "application/json"})
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = tree or match or file
        if found is None:
            self.refuse(404, "", "no such page")
            return
        repo = self._repo(found[1], found[2] or "main", files=file is not None)
        if repo is None:
            return
        if tree:
            self.answer(200, json.dumps(_tree(repo)).encode())
        elif file:
            self._resolve(found[1], repo, file[3], fault)
        else:
            info = {"id": found[1], "sha": repo.commit, "siblings": repo.siblings()}
            info["gated"] = "manual" if repo.gated else False
            self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _repo(self, name: str, revision: str, files: bool) -> Repo | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        repo = self.hub.repos.get(name)
        if token and token not in self.hub.tokens | self.hub.licensed:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.private and not token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", repo.commit):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif files and repo.gated and token not in self.hub.licensed:
            self.refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        else:
            return repo
        return None

    def _resolve(self, name: str, repo: Repo, file: str, fault: Fault) -> None:
        if file not in repo.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        extra = {"X_Repo_Commit": repo.commit}
        if not repo.is_large(file):
            self.send_file(repo, file, repo.hash(file), fault, **extra)
            return
        location = f"{self.hub.store_url}/{name}/{file}?signature=secret-of-the-address"
        linked = {"X-Linked-Size": str(repo.size(file)), "X-Linked-Etag": f'"{repo.hash(file)}"'}
        self.answer(302, b"", {"Location": location, "X-Repo-Commit": repo.commit, **linked})


class _StoreHandler(_Handler):
    """Large files, at signed addresses; like other stores it refuses a token besides. What is put
    here is kept by its SHA-256."""

    def serve(self, path: str, fault: Fault) -> None:
        if self.command == "PUT":
            time.sleep(fault.hang)
            self.answer(self.store(path, self.received), b"")
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/(.+)", path)
        repo = self.hub.repos.get(match[1]) if match else None
        if self.headers.get("Authorization"):
            self.refuse(400, "", "only one way of authorization is allowed")
        elif match is None or repo is None or "signature=" not in self.path:
            self.refuse(403, "", "no signature")
        else:
            # Its ETag is its own: not the sha256.
            etag = "store-" + hashlib.md5(repo.hash(match[2]).encode()).hexdigest()
            self.send_file(repo, match[2], etag, fault)


def _tree(repo: Repo) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in repo.files:
        row: dict[str, object] = {"type": "file", "path": name, "size": repo.size(name)}
        row["oid"] = "b" * 40 if repo.is_large(name) else repo.hash(name)
        if repo.is_large(name):
            row["lfs"] = {"oid": repo.hash(name), "size": repo.size(name), "pointerSize": 135}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve folders as a Hub")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, help="bytes a second")
    parser.add_argument("--port", type=int, default=0)
    chosen = parser.parse_args()
    hub = Hub(rate=chosen.rate, port=chosen.port)
    for folder in sorted(chosen.folder.glob("*/*")):
        files: dict[str, bytes | Path] = {p.name: p for p in folder.iterdir() if p.is_file()}
        hub.add(f"{folder.parent.name}/{folder.name}", files)
    print(f"export HF_ENDPOINT={hub.url}  # {', '.join(hub.repos)}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
