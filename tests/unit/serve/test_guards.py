"""Host names, sessions, and how many uploads are received at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="fastapi is in the extra serve")

from ldot_milvus.serve.guards import FewAtOnce, KnownHosts, allowed_hosts, same_secret, session_of


@pytest.mark.parametrize(
    ("hosts", "bind", "host", "status"),
    [
        ([], "127.0.0.1", "localhost:8080", 200),
        ([], "127.0.0.1", "[::1]", 200),
        ([], "::1", "[::1]:1", 200),
        ([], "127.0.0.1", "photos.example", 421),
        ([], "127.0.0.1", "localhost.photos.example", 421),
        ([], "127.0.0.1", "localhost:80:80", 421),
        ([], "127.0.0.1", "", 421),
        ([], "0.0.0.0", "photos.example", 200),
        ([], None, "", 200),
        (["photos.example"], "0.0.0.0", "Photos.Example:80", 200),
        (["photos.example"], "127.0.0.1", "localhost", 421),
        (["[2001:db8::1]"], "::", "[2001:db8::1]:80", 200),
    ],
)
async def test_host_names(hosts: list[str], bind: str | None, host: str, status: int) -> None:
    guard = KnownHosts(answer_200, hosts=allowed_hosts(hosts, bind), origins=[])
    assert await status_of(guard, headers=[(b"host", host.encode())]) == status


@pytest.mark.parametrize(
    ("method", "origin", "origins", "status"),
    [
        ("GET", "https://other.example", [], 200),
        ("POST", None, [], 200),
        ("POST", "http://own.example:1", [], 200),
        ("POST", "http://own.example", [], 403),
        ("POST", "null", [], 403),
        ("POST", "https://other.example", [], 403),
        ("POST", "https://other.example", ["https://other.example"], 200),
        ("POST", "https://other.example", ["*"], 200),
        ("DELETE", "https://other.example", [], 403),
    ],
)
async def test_pages_of_other_sites(method: str, origin: str | None, origins: list[str], status: int) -> None:
    guard = KnownHosts(answer_200, hosts=None, origins=origins)
    headers = [(b"host", b"own.example:1"), *([] if origin is None else [(b"origin", origin.encode())])]
    assert await status_of(guard, method=method, headers=headers) == status


def test_secrets() -> None:
    assert same_secret("a", "a")
    assert not same_secret("a", "b")
    assert not same_secret("ä\ud800", "b")
    assert session_of("a") != session_of("b")
    assert "secret" not in session_of("secret")


async def test_few_uploads_at_once() -> None:
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await answer_200(scope, receive, send)

    guard = FewAtOnce(slow, paths=["/upload"], most=2)
    running = [asyncio.ensure_future(status_of(guard, path="/upload")) for _ in range(2)]
    other = asyncio.ensure_future(status_of(guard, path="/other"))
    await asyncio.sleep(0)
    assert await status_of(guard, path="/upload") == 429
    go.set()
    assert await asyncio.gather(*running, other) == [200, 200, 200]
    assert await status_of(guard, path="/upload") == 200


async def answer_200(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def status_of(app: Any, *, method: str = "GET", path: str = "/", headers: list[Any] | None = None) -> int:
    """Call an application and return the status of its answer."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": headers or []}, receive, send)
    return int(sent[0]["status"])
