"""A hub on this machine: what its real clients ask of huggingface.co, over HTTP on loopback.

Models and data sets with revisions, gated and private ones, tokens, uploads. Repositories are dictionaries of bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_aTokenThatMayEverything"
DAY = "2026-01-01T00:00:00.000Z"


@dataclass
class Repository:
    """Files of each revision; branches by their names. ``gated`` and ``private`` ones are for the token's owner."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    private: bool = False
    gated: bool = False

    def sha(self, revision: str) -> str | None:
        """The commit that a branch or a commit's name stands for."""
        for name, files in self.revisions.items():
            told = repr([(p, hashlib.sha1(b).hexdigest()) for p, b in sorted(files.items())])
            sha = hashlib.sha1(told.encode()).hexdigest()
            if revision in (name, sha):
                return sha
        return None

    def files(self, revision: str) -> dict[str, bytes]:
        """The files of a branch or a commit."""
        return next(f for name, f in self.revisions.items() if revision in (name, self.sha(name)))


@dataclass
class Hub:
    """Repositories by kind ("models", "datasets") and name, and what was asked: method and path."""

    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    def model(self, name: str, folder: Path, revision: str = "main", **options: Any) -> Repository:
        """Put a folder there as a model."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return self.put("models", name, files, revision, **options)

    def put(
        self, kind: str, name: str, files: Mapping[str, bytes | str], revision: str = "main", **options: Any
    ) -> Repository:
        """Put files there."""
        found = self.repositories.setdefault((kind, name), Repository(**options))
        found.revisions[revision] = {p: b.encode() if isinstance(b, str) else b for p, b in files.items()}
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self._query = parse_qs(url.query)
        self.hub.asked.append((self.command, url.path))
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        if parts[0] == "api":
            self._api(parts[1:])
        elif parts[0] == "datasets":
            self._file("datasets", parts[1:])
        else:
            self._file("models", parts)

    def _api(self, parts: list[str]) -> None:
        if parts == ["repos", "create"]:
            self._create()
        elif parts[0] in ("models", "datasets") and len(parts) >= 3:
            repository = self._allowed(parts[0], "/".join(parts[1:3]), listing=True)
            if repository is not None:
                self._of_repository(parts[0], "/".join(parts[1:3]), repository, parts[3:])
        elif parts == ["validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[0] == "whoami-v2" and self._known():
            self._json({"name": "org", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        else:
            self._error(404, "EntryNotFound")

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _allowed(self, kind: str, name: str, listing: bool = False) -> Repository | None:
        """The repository, if whoever asks may see it; else None, after an error."""
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.private and not self._known()):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        if found.gated and not self._known() and not listing:
            self._error(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return found

    def _of_repository(self, kind: str, name: str, repository: Repository, rest: list[str]) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repository.sha(revision)
        if sha is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
        elif not rest or rest[0] == "revision":
            files = [{"rfilename": p} for p in sorted(repository.files(revision))]
            told = {"id": name, "modelId": name, "author": "org", "sha": sha, "private": repository.private}
            told |= {"gated": "manual" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0}
            self._json(told | {"tags": [], "siblings": files, "createdAt": DAY, "lastModified": DAY, "cardData": None})
        elif rest[0] == "tree":
            self._json(self._tree(repository.files(revision), "/".join(rest[2:])))
        elif rest[0] == "paths-info":
            form = json.loads(self._body) if self._body.startswith(b"{") else parse_qs(self._body.decode())
            wanted, files = form.get("paths", []), repository.files(revision)
            entries = [e for path in wanted for e in self._entries(files, path)]
            self._json(entries)
        elif rest[0] == "preupload":
            sent = json.loads(self._body)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            self._json({"files": [{"path": f["path"], **how} for f in sent]})
        elif rest[0] == "commit":
            self._commit(name, repository, revision)
        else:
            self._error(404, "EntryNotFound")

    def _entries(self, files: Mapping[str, bytes], path: str) -> list[dict[str, Any]]:
        if path in files:
            return [{"type": "file", "path": path, "size": len(files[path]), "oid": _oid(files[path])}]
        inside = any(p.startswith(f"{path}/") for p in files)
        return [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0}] if inside else []

    def _tree(self, files: Mapping[str, bytes], under: str) -> list[dict[str, Any]]:
        prefix = f"{under}/" if under else ""
        below = [p for p in sorted(files) if p.startswith(prefix)]
        if self._query.get("recursive", ["false"])[0].lower() in ("true", "1"):
            parents = ("/".join(p.split("/")[:n]) for p in below for n in range(1, p.count("/") + 2))
            names = dict.fromkeys(parents)
        else:
            names = dict.fromkeys(prefix + p.removeprefix(prefix).split("/")[0] for p in below)
        return [entry for name in names for entry in self._entries(files, name)]

    def _create(self) -> None:
        asked = json.loads(self._body)
        name = f"{asked.get('organization', 'org')}/{asked['name']}"
        if not self._known():
            self._error(401, "", "Invalid credentials")
            return
        kind = {"model": "models", "dataset": "datasets"}[asked.get("type", "model")]
        status = 409 if (kind, name) in self.hub.repositories else 200
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories.setdefault((kind, name), Repository(private=private))
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, status)

    def _commit(self, name: str, repository: Repository, revision: str) -> None:
        if not self._known():
            self._error(401, "", "Invalid credentials")
            return
        files = repository.revisions[revision]
        for line in self._body.decode().splitlines():
            told = json.loads(line)
            if told["key"] == "file":
                files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
        sha = repository.sha(revision)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    def _file(self, kind: str, parts: list[str]) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self._allowed(kind, name)
        if repository is None:
            return
        if len(rest) < 3 or rest[0] != "resolve":
            self._error(404, "EntryNotFound")
            return
        sha = repository.sha(rest[1])
        if sha is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return
        content = repository.files(rest[1]).get("/".join(rest[2:]))
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        start, stop = 0, len(content)
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, stop) if last else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self._send(206 if "Content-Range" in headers else 200, content[start:stop], "application/octet-stream", headers)

    def _error(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, json.dumps({"error": message}).encode(), "application/json", headers)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), "application/json", {})

    def _send(self, status: int, content: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on a free port of loopback until the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
