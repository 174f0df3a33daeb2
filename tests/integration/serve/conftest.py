"""One running service for a module, over twelve photos and the tiny model."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_photo
from tests.service_process import Service

pytest.importorskip("fastapi", reason="fastapi is in the extra serve")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Running(Service):
    """A service, and requests to it, each over a connection of its own."""

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body, sent = json.dumps(body).encode(), {"Content-Type": "application/json", **sent}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def search(self, **query: Any) -> Answer:
        return self.ask("POST", "/v1/search", query)

    def connect(self, data: bytes = b"") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        made.sendall(data)
        return made

    def wait_ready(self) -> None:
        self.wait_for("searches are answered")

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def upload(name: str, *files: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """The body and the header of a form."""
    head = '--x\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    parts = [head.format(field, "").encode() + value.encode() + b"\r\n" for field, value in fields.items()]
    for number, data in enumerate(files):
        parts.append(head.format(name, f'; filename="../{number}.gif"').encode() + data + b"\r\n")
    return b"".join([*parts, b"--x--\r\n"]), {"Content_Type": "multipart/form-data; boundary=x"}


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what the condition returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Album:
    """A filled store, and the environment of a service over it."""

    folder: Path
    env: dict[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny, tiny_model: str) -> Album:
    from ldot_milvus import open_store
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.sources import Source

    folder = tmp_path_factory.mktemp("served")
    sources = []
    for seed in range(12):
        path = folder / f"{seed:04}.jpg"
        path.write_bytes(make_photo(seed))
        sources.append(Source(str(path), caption=f"photo {seed}", metadata={"n": seed}))
    address = f"faiss:{folder / 'ldot-data'}"
    with open_store(address, "images") as store:
        Ingestor(store, tiny).ingest(sources)
    with open_store(address, "more") as store:
        Ingestor(store, tiny).ingest(sources[:3])
    env = {"LDOT_STORE": address, "LDOT_MODEL": tiny_model, "LDOT_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1"}
    return Album(folder, env)


@pytest.fixture(scope="module")
def service(served: Album, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    env = {**served.env, "LDOT_SERVE_INGEST": "true"}
    with Running(tmp_path_factory.mktemp("service"), ["ldot", "serve", "--port", "{port}"], env) as running:
        running.wait_ready()
        yield running
