"""Repositories of the local Hub, and the faults that its server can have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Fault:
    """A fault of the next `times` requests whose method and path match."""

    path: str = ".*"
    """Regular expression, searched in the path of the Hub or of the storage."""
    method: str = "GET"
    times: int = 1
    status: int = 0
    """Answer only with this status."""
    headers: dict[str, str] = field(default_factory=dict)
    """Additional headers of that answer."""
    cut_after: int | None = None
    """Close the connection after this many bytes of the body."""
    short_by: int = 0
    """Send this many bytes less, with a matching Content-Length."""
    rate: float | None = None
    """Bytes per second."""
    wrong_at: int | None = None
    """Invert the byte at this offset of the file."""
    no_ranges: bool = False
    """Answer a range request with 200 and the whole file."""
    shifted: bool = False
    """Answer a range request with a range that begins one byte earlier."""
    hang: float = 0.0
    """Seconds to wait before the body."""
    gzip: bool = False
    """Compress the body although the client did not accept it."""


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
        """Wrong hashes to publish, by file name."""
        self.bare = False
        """Whether the listing omits sizes and hashes, as some mirrors do."""
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
