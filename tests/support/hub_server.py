"""A local server with the Hub's HTTP API and faults on demand; hub_server.md describes it.

`python -m tests.support.hub_server FOLDER [--rate BYTES_PER_SECOND]` serves every
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.support.hub_repo import Fault, Repo
from tests.support.uploads import Uploads

_CHUNK = 1 << 16


class Hub:
    """The server: API and small files at `url`, large files behind a redirect at another port.

    A request gets the first fault of `faults` that matches.

    Attributes:
        requests: every request as (method, path, headers).
        sent: total bytes of file bodies that were sent.
        rate: bytes per second of every body; None: unlimited.
        tokens: valid tokens; those in `licensed` may read gated repositories, those in `readers`
            may not write.
        objects: uploaded large files by their SHA-256.
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
        """Close all open connections; returns their number."""
        with self._lock:
            live = list(self._live)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        return len(live)

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault of this request; decrements its count."""
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
        # Small buffers, so that `sent` is close to what the client received when a connection
        # is closed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHUNK)
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
        """Send the file or the requested range of it, with the fault applied."""
        size = repo.size(name)
        start, status = 0, 200
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if requested and not fault.no_ranges and condition in (None, f'"{etag}"'):
            start, status = int(requested[1]), 206
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
        chunk = _CHUNK if rate is None else max(1, min(_CHUNK, int(rate / 20)))
        began, offset = time.monotonic(), start
        while offset < end:
            count = min(chunk, end - offset)
            if fault.cut_after is not None:
                count = min(count, start + fault.cut_after - offset)
                if count <= 0:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
            data = bytearray(repo.read(name, offset, count))
            if fault.wrong_at is not None and offset <= fault.wrong_at < offset + count:
                data[fault.wrong_at - offset] ^= 0xFF
            self.wfile.write(data)
            self.hub.count(len(data))
            offset += count
            if rate is not None:
                ahead = (offset - start) / rate - (time.monotonic() - began)
                time.sleep(max(0.0, ahead))


class _HubHandler(_Handler):
    """The API and the files by name."""

    def serve(self, path: str, fault: Fault) -> None:
        if self.command == "POST" or path == "/api/whoami-v2":
            status, body = self.receive(path, self.received)
            self.answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
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
    """Large files at signed URLs; requests with a token are rejected. Uploads are stored by their
    SHA-256."""

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
            # The storage has its own ETag, not the sha256.
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
    parser = argparse.ArgumentParser(description="Serve folders like the Hub")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, help="bytes per second")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    hub = Hub(rate=arguments.rate, port=arguments.port)
    for folder in sorted(arguments.folder.glob("*/*")):
        files: dict[str, bytes | Path] = {p.name: p for p in folder.iterdir() if p.is_file()}
        hub.add(f"{folder.parent.name}/{folder.name}", files)
    print(f"export HF_ENDPOINT={hub.url}  # {', '.join(hub.repos)}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
