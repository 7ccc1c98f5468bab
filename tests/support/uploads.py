"""The upload API of the local Hub: whoami, creating a repository, and commits, with small files in
the request and large files uploaded before (git LFS, in one part).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

LARGE = re.compile(r"\.(safetensors|gguf)$")


class Uploads:
    """Mixin of the server's request handlers for uploads."""

    hub: Any  # the server's `Hub`
    command: str
    headers: Any
    rfile: Any

    def body(self) -> bytes:
        """The request's body, by Content-Length or chunked."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def receive(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """(status, JSON answer) of an API request of an upload."""
        hub = self.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in hub.tokens:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if token in hub.readers:
            return 403, {"error": "you don't have the rights to write here"}
        data = json.loads(body) if not path.endswith(("/commit/main", "verify")) else {}
        if path == "/api/validate-yaml":
            valid = data["content"].startswith("---\n")
            errors = [] if valid else [{"message": '"license" is required'}]
            return 200 if valid else 400, {"errors": errors, "warnings": []}
        if path == "/api/repos/create":
            name = f"{data['organization']}/{data['name']}"
            exists = name in hub.repos
            if not exists:
                hub.add(name, {}, private=data.get("visibility") == "private")
            return 409 if exists else 200, {"url": f"{hub.url}/{name}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._where(o) for o in data["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [self._mode(file) for file in data["files"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], body)
        return (200, {}) if path == "/verify" else (404, {"error": "no such page"})

    def store(self, path: str, body: bytes) -> int:
        """Store a large file; returns status 400 where its bytes do not have the announced hash."""
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return 400
        self.hub.objects[oid] = body
        return 200

    def _where(self, file: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.store_url}/objects/{file['oid']}"
        actions = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/verify"}}
        exists = file["oid"] in self.hub.objects
        return {"oid": file["oid"], "size": file["size"]} | ({} if exists else {"actions": actions})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if LARGE.search(file["path"]) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _commit(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        files: dict[str, bytes] = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    return 400, {"error": f"{value['path']} was never uploaded"}
                files[value["path"]] = self.hub.objects[value["oid"]]
        self.hub.repos[name].files.update(files)
        url = f"{self.hub.url}/{name}/commit/{'c' * 40}"
        return 200, {"commitUrl": url, "commitOid": "c" * 40, "pullRequestUrl": None}
