"""What the Hub answers to an upload: who is there, a repository made, a commit of small files in
its request and of large ones that went to the store before (git LFS, in one part)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.hub_server import Hub

LARGE = re.compile(r"\.(safetensors|gguf)$")


class Uploads:
    """The part of the server's handlers that receives; `hub_server` mixes it in."""

    hub: Hub
    command: str
    headers: Any
    rfile: Any

    def body(self) -> bytes:
        """The request's body, by its length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def receive(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and answer of the Hub to a question of an upload."""
        from tests.support.hub_server import Repo

        hub = self.hub
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in hub.tokens:
            return 401, {"error": "Invalid credentials in Authorization header"}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user"}
        if token in hub.readers:
            return 403, {"error": "you don't have the rights to write here"}
        asked = json.loads(body) if not path.endswith(("/commit/main", "verify")) else {}
        if path == "/api/validate-yaml":
            good = asked["content"].startswith("---\n")
            errors = [] if good else [{"message": '"license" is required'}]
            return 200 if good else 400, {"errors": errors, "warnings": []}
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            there = name in hub.repos
            if not there:
                hub.repos[name] = Repo({}, private=asked.get("visibility") == "private")
            return 409 if there else 200, {"url": f"{hub.url}/{name}"}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._where(o) for o in asked["objects"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return 200, {"files": [self._mode(file) for file in asked["files"]]}
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(match[1], body)
        return (200, {}) if path == "/verify" else (404, {"error": "no such page"})

    def store(self, path: str, body: bytes) -> int:
        """A large file, put into the store; refused when its bytes are not what was announced."""
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            return 400
        self.hub.objects[oid] = body
        return 200

    def _where(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.store_url}/objects/{wanted['oid']}"
        actions = {"upload": {"href": href}, "verify": {"href": f"{self.hub.url}/verify"}}
        there = wanted["oid"] in self.hub.objects
        return {"oid": wanted["oid"], "size": wanted["size"]} | (
            {} if there else {"actions": actions}
        )

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
