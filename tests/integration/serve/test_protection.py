"""What the service refuses or bounds, while it serves others; and how it ends."""

from __future__ import annotations

import io
import signal
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import pytest

from ldot_milvus import Client
from ldot_milvus.errors import UsageError
from tests.conftest import make_photo
from tests.integration.serve.conftest import Album, Running, until, upload

TOKEN = "a-S3cret-token"


@pytest.fixture(scope="module")
def guarded(served: Album, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    env = {
        **served.env, "LDOT_SERVE_TOKEN": TOKEN, "LDOT_SERVE_HOSTS": "127.0.0.1,photos.example",
        "LDOT_SERVE_ORIGINS": "https://page.example", "LDOT_MAX_PIXELS": "1000000",
    }  # fmt: skip
    command = ["ldot", "serve", "--port", "{port}", "--host", "0.0.0.0"]
    with Running(tmp_path_factory.mktemp("guarded"), command, env) as running:
        running.wait_ready()
        yield running


def test_the_token(guarded: Running) -> None:
    query = {"text": "a"}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.ask("POST", "/v1/search", query, **bearer).status == 200
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}, {"Cookie": f"ldot_session={TOKEN}"}):
        answer = guarded.ask("POST", "/v1/search", query, **headers)
        assert (answer.status, answer.json["code"]) == (401, "token")
    for path in ("/metrics", "/openapi.json", "/v1/collections", "/v1/rows/x"):
        assert guarded.ask("GET", path).status == 401
    assert guarded.ask("GET", "/health/ready").status == 200
    assert guarded.ask("POST", "/v1/session", {"token": "x"}).status == 401
    begun = guarded.ask("POST", "/v1/session", {"token": TOKEN})
    assert begun.status == 204
    cookie = begun.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert guarded.ask("GET", "/v1/collections", Cookie=cookie.partition(";")[0]).status == 200
    with pytest.raises(UsageError, match="needs a token"):
        Client(guarded.url("")).search("a")
    assert Client(guarded.url(""), TOKEN).search("a")
    assert TOKEN not in guarded.log.read_text()


def test_other_hosts_and_pages_of_other_sites(guarded: Running, service: Running) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for host, status in (("photos.example:8080", 200), ("PHOTOS.example", 200), ("evil.example", 421), ("", 421)):
        assert guarded.ask("GET", "/v1/collections", Host=host, **bearer).status == status
    for host in ("localhost", "127.0.0.1", "[::1]:8080"):
        assert service.ask("GET", "/v1/collections", Host=host).status == 200
    assert service.ask("GET", "/v1/collections", Host="rebound.example").status == 421
    for origin, status in (("https://page.example", 200), ("https://evil.example", 403), ("null", 403)):
        answer = guarded.ask("POST", "/v1/search", {"text": "a"}, Origin=origin, **bearer)
        assert answer.status == status
        assert answer.headers.get("access-control-allow-origin") == (origin if status == 200 else None)
    own = {"Origin": "http://photos.example", "Host": "photos.example"}
    assert guarded.ask("POST", "/v1/search", {"text": "a"}, **own, **bearer).status == 200
    body, headers = upload("files", make_photo(1))
    assert guarded.ask("POST", "/v1/ingest", body, **headers, **bearer).status == 403
    assert "everyone" not in guarded.log.read_text()


def test_bombs(guarded: Running) -> None:
    """A photo of more pixels than the limit, in a few kilobytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (5000, 5000)).save(buffer, "PNG")
    body, headers = upload("file", buffer.getvalue())
    answer = guarded.ask("POST", "/v1/search/image", body, Authorization=f"Bearer {TOKEN}", **headers)
    assert (answer.status, answer.json["code"]) == (400, "input")
    assert "limit of 1,000,000 pixels" in answer.json["error"]
    packed = zlib.compress(b'{"text": "' + b"a" * 2**24 + b'"}')
    body_answer = guarded.ask(
        "POST", "/v1/search", packed, Authorization=f"Bearer {TOKEN}", Content_Encoding="deflate",
        Content_Type="application/json",
    )  # fmt: skip
    assert (body_answer.status, body_answer.json["code"]) == (400, "body")


def test_an_endless_upload_is_cut_off(service: Running) -> None:
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with service.connect(head.format("/v1/search").encode()) as sender:
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sent = 0
        try:
            while sent < 64 * 2**20:
                sender.sendall(chunk)
                sent += 65536
        except OSError:
            pass
        assert sent < 16 * 2**20  # what was on the way
    announced = service.connect(b"POST /v1/ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
    with announced:
        assert announced.recv(100).startswith(b"HTTP/1.1 413")
    assert service.search(text="a").status == 200


def test_idle_and_slow_connections_do_not_keep_others_out(service: Running) -> None:
    half = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
    idle = [service.connect(half if number % 2 else b"") for number in range(1000)]
    try:
        started = time.monotonic()
        for _ in range(5):
            assert service.search(text="a").status == 200
        assert time.monotonic() - started < 20
        stop = threading.Event()

        def drip() -> None:
            with service.connect(half) as sender:
                while not stop.wait(0.5):
                    try:
                        sender.sendall(b"x")
                    except OSError:
                        return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            until(lambda: closed(idle[-1]), 60)
            until(lambda: not dripping.is_alive(), 60)
        finally:
            stop.set()
            dripping.join()
        assert service.search(text="a").status == 200
    finally:
        for connection in idle:
            connection.close()


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.slow  # waits for the time limit
def test_a_client_that_does_not_read_is_dropped(service: Running) -> None:
    """It asks again and again, and reads nothing: the buffers of both sides are full at some time."""
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", service.port))
        reader.settimeout(1)
        until(lambda: dropped(reader, 50 * b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert service.search(text="a").status == 200


def dropped(connection: socket.socket, data: bytes) -> bool:
    """Send something, and return whether the other side has closed the connection."""
    try:
        connection.sendall(data)
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def test_running_requests_are_finished_at_sigterm(served: Album, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = ["ldot", "serve", "--port", "{port}"]
    with Running(tmp_path_factory.mktemp("ending"), command, served.env) as running:
        running.wait_for("serving http")
        first = until(lambda: status_of(running))
        assert first in (200, 503)  # 503 while the model is being loaded
        running.wait_ready()
        body, headers = upload("file", make_photo(7, (4000, 4000), "PNG"))
        answers: list[int] = []
        asking = [
            threading.Thread(
                target=lambda: answers.append(running.ask("POST", "/v1/search/image", body, **headers).status)
            )
            for _ in range(6)
        ]
        for thread in asking:
            thread.start()
        until(lambda: b"ldot_search_queue 5.0" in running.ask("GET", "/metrics").body or answers)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(60) == 0
        for thread in asking:
            thread.join()
        assert answers == [200] * 6


def status_of(running: Running) -> int:
    try:
        return running.ask("GET", "/health/ready").status
    except OSError:
        return 0
