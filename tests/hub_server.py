"""A small Hugging Face hub on this machine: repositories with revisions, one of them gated."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

ERRORS = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}


class FakeHub:
    """Serves folders as repositories.

    Attributes:
        revisions: folder of each (repository, revision).
        commits: commits of (repository, revision), where they are not a hash of the two.
        gated: repositories whose files are refused.
        fetched: paths of the files that were downloaded.
        url: for ``HF_ENDPOINT``.
    """

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], Path] = {}
        self.commits: dict[tuple[str, str], str] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository, rest = "/".join(parts[2:4]), parts[4:]
            found = self._folder(request, repository, unquote(rest[1]) if rest else "main")
            if found is not None:
                folder, commit = found
                if rest[:1] == ["tree"]:
                    _send(request, json.dumps([_entry(path, folder) for path in _files(folder)]).encode())
                else:
                    _send(request, json.dumps({"id": repository, "sha": commit, "siblings": []}).encode())
            return
        if len(parts) < 5:
            _refuse(request, "EntryNotFound")
            return
        repository, commit, name = "/".join(parts[:2]), unquote(parts[3]), unquote("/".join(parts[4:]))
        found = self._folder(request, repository, commit)
        if found is None:
            return
        if repository in self.gated:
            _refuse(request, "GatedRepo")
            return
        path = found[0] / name
        if not path.is_file():
            _refuse(request, "EntryNotFound")
            return
        if request.command == "GET":
            self.fetched.append(name)
        content = path.read_bytes()
        _send(request, content, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": found[1]})

    def _folder(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> tuple[Path, str] | None:
        if repository not in {name for name, _ in self.revisions}:
            _refuse(request, "RepoNotFound")
            return None
        for (name, ref), folder in self.revisions.items():
            commit = self.commits.get((name, ref)) or hashlib.sha1(f"{name}@{ref}".encode()).hexdigest()
            if name == repository and revision in (ref, commit):
                return folder, commit
        _refuse(request, "RevisionNotFound")
        return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(path: Path, folder: Path) -> dict[str, object]:
    entry = {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": _etag(path)}
    if path.suffix == ".safetensors":
        entry["lfs"] = {"oid": _etag(path), "size": path.stat().st_size, "pointerSize": 100}
    return entry


def _etag(path: Path) -> str:
    """As on the hub: large files are named by their SHA-256, small ones by a SHA-1."""
    digest = hashlib.sha256 if path.suffix == ".safetensors" else hashlib.sha1
    return digest(path.read_bytes()).hexdigest()


def _refuse(request: BaseHTTPRequestHandler, code: str) -> None:
    _send(request, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, ERRORS[code])


def _send(
    request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str] | None = None, status: int = 200
) -> None:
    request.send_response(status)
    for name, value in {
        "Content-Length": str(len(body)),
        "Content-Type": "application/json",
        **(headers or {}),
    }.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)
